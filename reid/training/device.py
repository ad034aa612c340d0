"""The device that a process trains on. Imports torch: stages import this module when they run."""

from __future__ import annotations

import torch
from torch import distributed

from data.device import devices_together
from reid.config.train import TrainConfig


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of `config` or, in a process group on this machine, the device of this process.

    Raises ConfigError if that device does not exist.
    """
    grouped = distributed.is_initialized()
    processes, rank = (distributed.get_world_size(), distributed.get_rank()) if grouped else (1, 0)
    return torch.device(devices_together(config.device, processes, torch.cuda, "train.device")[rank])
