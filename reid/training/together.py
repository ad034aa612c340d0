"""The train stage in several processes of one launcher; only the first process writes the artifact."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from data.artifacts.store import Made
from data.errors import ConfigError
from data.process.environment import hidden_variables
from data.stages.stage import Plan, RunContext
from reid.training.stage import TrainStage

if TYPE_CHECKING:
    from accelerate import PartialState


def train_together(stage: TrainStage, run: RunContext) -> Made:
    """Train `stage`, which has ``launched=True``, in this process and the others of its launcher.

    Only the first process takes the lock of the artifact; the others would wait for it forever. Raises the errors of
    `TrainStage.make`.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    from reid.training.device import training_device

    with hidden_variables(launched=True):
        # Without the flag, accelerate silently lets each process train on its own if it does not find a GPU.
        process = PartialState(cpu=training_device(stage.config).type == "cpu")
        plan = stage.plan(run)
        _check_alike(plan, run, process)
        answer = [plan.find(run.store) if process.is_main_process else None]
        dist.broadcast_object_list(answer)
        if answer[0] is not None:
            return Made(ref=answer[0], cached=True)
        if process.is_main_process:
            answer = [plan.make(run).ref]
        else:
            _help(plan, run, process.process_index)
        dist.broadcast_object_list(answer)
        assert answer[0] is not None
        return Made(ref=answer[0], cached=False)


def _check_alike(plan: Plan, run: RunContext, process: PartialState) -> None:
    """Raise ConfigError in all processes unless all train the same model into the same artifact root."""
    import torch.distributed as dist

    mark = run.store.scratch(plan.stage.name, f"together-{secrets.token_hex(8)}") if process.is_main_process else None
    if mark is not None:
        mark.mkdir(parents=True)
    told: list[tuple[str, str] | None] = [(plan.fingerprint, str(mark)) if mark is not None else None]
    dist.broadcast_object_list(told)
    fingerprint, path = told[0] or ("", "")
    seen: list[tuple[bool, bool]] = [(False, False)] * process.num_processes
    dist.all_gather_object(seen, (plan.fingerprint == fingerprint, Path(path).is_dir()))
    if mark is not None:
        mark.rmdir()
    if not all(is_same for is_same, _ in seen):
        raise ConfigError(
            "the machines train different models: run the same command with the same settings, images and captions on "
            "all of them; only scale.train_machine differs"
        )
    if not all(sees for _, sees in seen):
        raise ConfigError(
            f"a machine does not see the artifact root {run.store.root} of machine 0: mount the same folder under the "
            "same path on all machines"
        )


def _help(plan: Plan, run: RunContext, rank: int) -> None:
    """Take part in the training and delete what this process writes."""
    folder = run.store.scratch(plan.stage.name, f"{plan.fingerprint}.rank{rank}")
    folder.mkdir(parents=True, exist_ok=True)
    plan.stage.produce(run, folder, run.store.scratch(plan.stage.name, plan.fingerprint))
    shutil.rmtree(folder)
