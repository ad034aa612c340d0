"""What each process of tests/test_reid_distributed.py runs: a short training, its records into the folder named."""

import sys
from pathlib import Path

import torch

from reid.build import build_task
from reid.checkpoint import save_model
from reid.trainer import fit
from tests.reid_worlds import small_config, training_set


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = small_config(checkpoint_every=3)
    task = build_task(config, identities=8)
    fit(task, training_set(), config, folder=folder)
    save_model(folder / f"model-{torch.distributed.get_rank()}.safetensors", task)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
