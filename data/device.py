"""Where a stage computes: one validated setting, and the one place that turns it into a device of this machine."""

from __future__ import annotations

import re
from typing import Annotated, Final, Protocol

from pydantic import AfterValidator

from data.config import RUNTIME
from data.errors import ConfigError

CPU: Final = "cpu"
PROCESSES_KEY: Final = "scale.train_processes"
"""The full key of the number of training processes, for messages."""
_FORM: Final = re.compile(r"auto|cpu|cuda(:(0|[1-9]\d*))?", re.ASCII)


class Cuda(Protocol):
    """What is asked of ``torch.cuda``, passed in because `data` does not import torch."""

    def is_available(self) -> bool:
        """Return True if CUDA works here."""

    def device_count(self) -> int:
        """Return the number of CUDA devices."""


def _valid(device: str) -> str:
    if not _FORM.fullmatch(device):
        raise ValueError("must be auto, cpu, cuda or cuda:N, such as cuda:0")
    return device


Device = Annotated[str, RUNTIME, AfterValidator(_valid)]
"""The setting: auto (the first CUDA device if there is one, else the CPU), cpu, cuda (the first one) or cuda:N."""


def cuda_devices(cuda: Cuda) -> int:
    """Return the number of CUDA devices that can be used; 0 where the driver does not work."""
    return cuda.device_count() if cuda.is_available() else 0


def resolve_device(device: str, cuda: Cuda, key: str) -> str:
    """Return the device that the setting `device` means on this machine: "cpu" or "cuda:N".

    Only auto falls back to the CPU.

    Args:
        device: a valid `Device`.
        cuda: ``torch.cuda``; not asked for "cpu".
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
    raise ConfigError(f"{key}={device}: no such device; the CUDA devices here are {names}: set {key}=cuda:{count - 1}")


def devices_together(device: str, processes: int, cuda: Cuda, key: str) -> tuple[str, ...]:
    """Return the device of each of several training processes on this machine: one CUDA device each, or the CPU.

    device, cuda, key: as for `resolve_device`. Raises ConfigError where there are too few, or where `device` names one.
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
            f"{PROCESSES_KEY}={processes}: each process wants a CUDA device and this machine has {count}; "
            f"set {PROCESSES_KEY}={count}, or {key}=cpu"
        )
    return tuple(f"cuda:{index}" for index in range(processes))
