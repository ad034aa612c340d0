"""The device that a process trains on. Imports torch: stages import this module when they run."""

from __future__ import annotations

import os

import torch
from torch import distributed

from data.device import devices_together
from reid.config.train import TrainConfig


def training_device(config: TrainConfig) -> torch.device:
    """Return the device of `config` or, in a process group, the device of this process among those of its machine.

    Raises ConfigError if that device does not exist.
    """
    grouped = distributed.is_initialized()
    # The launcher sets these for the processes of each machine; accelerate selects devices by them too.
    processes, rank = (int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])) if grouped else (1, 0)
    return torch.device(devices_together(config.device, processes, torch.cuda, "train.device")[rank])
