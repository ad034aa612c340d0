"""This machine: its memory, and whether its processor has bf16 and fp16 instructions or emulates them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from data.errors import counted

_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
"""Limit and use of memory of a container, in bytes."""
_CPUINFO: Final = Path("/proc/cpuinfo")
_FLAG_LINES: Final = ("flags", "Features")  # x86, ARM
_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_FP16: Final = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})
CAPTION_FACTOR: Final = 4.7
"""Time of captioning in bf16 relative to float32 on a CPU with AVX2 only: the embedded model, compiled slots."""
TRAIN_FACTOR: Final = 8.5
"""The same for a training step of the embedded CLIP. Both are larger for larger models (docs/performance.md)."""


class Memory(NamedTuple):
    """Bytes of memory of a machine or a GPU."""

    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The instructions of a CPU. flags: as the kernel lists them; empty if they are unknown."""

    flags: frozenset[str] = frozenset()

    def emulates(self, dtype: str) -> bool:
        """Return True if the CPU lacks instructions for `dtype` (bfloat16 or float16); False if that is unknown."""
        native = {"bfloat16": _BF16, "float16": _FP16}.get(dtype)
        return native is not None and bool(self.flags) and not self.flags & native


class Load(NamedTuple):
    """Processes that want to run, on average over the last minute, and processor cores for them."""

    average: float
    cores: int

    @property
    def is_busy(self) -> bool:
        """Whether some processes have to wait."""
        return self.average > self.cores

    @property
    def text(self) -> str:
        """Both numbers in words."""
        return f"speed measured on a busy machine (load average {self.average:.1f}, {counted(self.cores, 'core')})"


def machine_load() -> Load:
    """Return the load of this machine."""
    return Load(os.getloadavg()[0], len(os.sched_getaffinity(0)))


def this_processor() -> Processor:
    """Return the processor of this machine."""
    if platform.system() != "Linux" or not _CPUINFO.is_file():
        return Processor()
    return Processor(flags=flags_of(_CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()))


def flags_of(lines: Iterable[str]) -> frozenset[str]:
    """Return the flags of the first core in the lines of /proc/cpuinfo."""
    for line in lines:
        name, colon, flags = line.partition(":")
        if colon and name.strip() in _FLAG_LINES:
            return frozenset(flags.split())
    return frozenset()


def machine_memory() -> Memory:
    """Return the memory of this machine, or of the container."""
    found = psutil.virtual_memory()
    limit, used = (path.read_text(encoding="ascii").strip() if path.is_file() else "max" for path in _LIMITS)
    if not (limit.isdecimal() and used.isdecimal()):
        return Memory(found.available, found.total)
    total = min(found.total, int(limit))
    return Memory(min(found.available, max(0, total - int(used))), total)
