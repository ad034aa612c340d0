"""Where a process trains. Imports torch; stages import it when they run."""

from __future__ import annotations

import os

import torch

from data.device import devices_together
from reid.config.train import TrainConfig


def training_device(config: TrainConfig) -> torch.device:
    """Return where this process trains: the device of `config` or, of several processes, its own.

    Raises ConfigError where that device does not exist.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by the launcher, as is the rank
    rank = int(os.environ.get("LOCAL_RANK", "0")) if processes > 1 else 0
    return torch.device(devices_together(config.device, processes, torch.cuda, "train.device")[rank])
