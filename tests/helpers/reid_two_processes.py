"""Program of each process of tests/reid/test_distributed.py: a short training that writes its records to a folder.

The processes score the two epochs in opposite orders. The scores of the first process count.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from data.process.environment import hidden_variables
from reid.config.scgi import ScgiConfig
from reid.config.train import LossConfig, TrainConfig, ValidationConfig
from reid.tasks.build import build_task
from reid.training.checkpoint import save_model
from reid.training.trainer import fit
from tests.helpers.reid_worlds import small_config, training_set


def shared_config(**changes: Any) -> TrainConfig:
    """Return settings whose losses gather everything that a loss can gather."""
    return small_config(
        checkpoint_every=3,
        scgi=ScgiConfig(contrast_text="both"),
        loss=LossConfig(distill_weight=1.0),
        retrieval_head="separate",
        blend=0.5,
        **changes,
    )


def main(folder: Path) -> None:
    """Train two epochs, and write the model and the best epoch that this process knows of."""
    torch.set_num_threads(1)
    with hidden_variables(launched=True):
        PartialState(cpu=True)  # as `train_together` does; on a machine with a GPU, accelerate would choose NCCL
    config = shared_config(validation=ValidationConfig(every=1, keep="best"))
    task = build_task(config, identities=8)
    rank = int(os.environ["RANK"])
    scores = iter([[0.9, 0.1], [0.1, 0.9]][rank])
    state = fit(task, training_set(), config, folder=folder, validate=lambda _: {"mAP": next(scores)}, launched=True)
    save_model(folder / f"model-{rank}.safetensors", task)
    (folder / f"best-{rank}.json").write_text(json.dumps(state.best))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
