"""The device setting of all stages: its validation, and its resolution to a device of this machine."""

from __future__ import annotations

import re
from typing import Annotated, Final, Protocol

from pydantic import AfterValidator

from data.config import RUNTIME
from data.errors import ConfigError

CPU: Final = "cpu"
PROCESSES_KEY: Final = "scale.train_processes"
"""Full key of the number of training processes, for messages."""
_PATTERN: Final = re.compile(r"auto|cpu|cuda(:(0|[1-9]\d*))?", re.ASCII)


class Cuda(Protocol):
    """The part of ``torch.cuda`` that is used; passed in because `data` does not import torch."""

    def is_available(self) -> bool:
        """Return True if CUDA works on this machine."""

    def device_count(self) -> int:
        """Return the number of CUDA devices."""


def _valid(device: str) -> str:
    if not _PATTERN.fullmatch(device):
        raise ValueError("must be auto, cpu, cuda or cuda:N, such as cuda:0")
    return device


Device = Annotated[str, RUNTIME, AfterValidator(_valid)]
"""The setting: auto (the first CUDA device if one exists, else the CPU), cpu, cuda (the first one) or cuda:N."""


def cuda_devices(cuda: Cuda) -> int:
    """Return the number of usable CUDA devices; 0 if the driver does not work."""
    return cuda.device_count() if cuda.is_available() else 0


def resolve_device(device: str, cuda: Cuda, key: str) -> str:
    """Return the device of this machine that the setting selects, "cpu" or "cuda:N"; only auto falls back to the CPU.

    Args:
        device: a valid `Device`.
        cuda: ``torch.cuda``; not used for "cpu".
        key: the full key of the setting, for the message.

    Raises:
        ConfigError: the CUDA device does not exist.
    """
    if device == CPU:
        return CPU
    count = cuda_devices(cuda)
    if device == "auto" and not count:
        return CPU
    number = int(device.partition(":")[2] or 0)
    if number < count:
        return f"cuda:{number}"
    if not count:
        raise ConfigError(f"{key}={device}: this machine has no usable CUDA device; set {key}=auto or {key}=cpu")
    names = ", ".join(f"cuda:{index}" for index in range(count))
    raise ConfigError(f"{key}={device}: no such device; this machine has {names}: set {key}=cuda:{count - 1}")


def devices_together(device: str, processes: int, cuda: Cuda, key: str) -> tuple[str, ...]:
    """Return the device of each training process on this machine: one CUDA device each, or the CPU for all.

    device, cuda, key: as for `resolve_device`. Raises ConfigError if there are fewer devices than processes, or if
    `device` names a single one for several processes.
    """
    name = resolve_device(device, cuda, key)
    if processes == 1 or name == CPU:
        return (name,) * processes
    if ":" in device:
        raise ConfigError(
            f"{key}={device}: {processes} processes cannot share one device; set {key}=cuda, or {PROCESSES_KEY}=1"
        )
    count = cuda_devices(cuda)
    if processes > count:
        raise ConfigError(
            f"{PROCESSES_KEY}={processes}: each process needs a CUDA device of its own, and this machine has {count}; "
            f"set {PROCESSES_KEY}={count}, or {key}=cpu"
        )
    return tuple(f"cuda:{index}" for index in range(processes))
