"""Program of the processes of tests/data/test_environment.py: a short training, or the options given to Prefect."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path


def train_shortly(folder: Path) -> None:
    """Train two epochs and print every logged loss and the digest of the weights."""
    import torch

    from reid.tasks.build import build_task
    from reid.training.metrics_log import METRICS_FILE
    from reid.training.trainer import fit
    from tests.helpers.reid_worlds import small_config, training_set

    torch.set_num_threads(1)
    task = build_task(small_config(), identities=8)
    fit(task, training_set(), small_config(), folder=folder)
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in task.state_dict().values()))
    steps = [[line["loss"], line["terms"]] for line in lines if line["kind"] == "step"]
    sys.stdout.write(json.dumps({"steps": steps, "weights": weights.hexdigest()}))


def print_options(_: Path) -> None:
    """Print the options for caching, results and retries of every flow and task of the project."""
    from prefect import Flow, Task

    from flows import pipeline, stage_tasks
    from flows.deploy import watch
    from flows.workers import captions

    found: dict[str, list[object]] = {}
    for module in (captions, pipeline, stage_tasks, watch):
        for value in vars(module).values():
            if isinstance(value, Flow):
                found[value.name] = [value.retries, value.persist_result]
            elif isinstance(value, Task):
                task = value.with_options(refresh_cache=False)  # as the pipeline calls it
                found[value.name] = [task.retries, task.persist_result, task.refresh_cache, task.result_serializer]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    {"train": train_shortly, "prefect": print_options}[sys.argv[1]](Path(sys.argv[2]))
