"""Two processes of `accelerate launch` take the same steps as one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from flows.execution.launch import launcher
from flows.recipes import ScaleConfig
from reid.tasks.build import build_task
from reid.training.metrics_log import METRICS_FILE
from reid.training.trainer import fit
from tests.helpers.places import REPO
from tests.helpers.reid_two_processes import shared_config
from tests.helpers.reid_worlds import training_set


def _losses(folder):
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [{"loss": line["loss"], **line["terms"]} for line in lines if line["kind"] == "step"]


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    torch.set_num_threads(1)
    config = shared_config()
    task = build_task(config, identities=8)
    fit(task, training_set(), config, folder=tmp_path / "one")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher(tmp_path, ScaleConfig(train_processes=2)),
            "-m",
            "tests.helpers.reid_two_processes",
            str(tmp_path / "two"),
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    first, second = (load_file(tmp_path / "two" / f"model-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first), "the processes have the same model"
    kept = [json.loads((tmp_path / "two" / f"best-{rank}.json").read_text()) for rank in (0, 1)]
    assert kept[0] == kept[1] == {"epoch": 0, "step": 2, "mAP": 0.9}, (
        "the first process decides which epoch is the best"
    )
