"""Peak memory of this process, or of a command and everything that it starts.

A peak counts anonymous pages only: the system can drop the pages of a mapped weights file at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

GIB: Final = 2**30
_SECONDS: Final = 0.05


class Peak:
    """The largest value seen so far, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_of(measure: Callable[[], int], seconds: float = _SECONDS) -> Iterator[Peak]:
    """Call `measure` every few hundredths of a second while the block runs, and at its end."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while True:
            peak.bytes = max(peak.bytes, measure())
            if done.wait(seconds):
                peak.bytes = max(peak.bytes, measure())
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def own_memory() -> int:
    """Return the anonymous memory of this process in bytes."""
    return memory_of_process("self")


def memory_of_family(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants in bytes; 0 if it has ended."""
    try:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(memory_of_process(str(member)) for member in family)


def resident() -> int:
    """Return the memory of this process in bytes, mapped files included."""
    return memory_of_process("self", ("VmRSS:",))


def memory_of_process(pid: str, kinds: tuple[str, ...] = ("RssAnon:", "RssShmem:")) -> int:
    """Return the anonymous memory of one process in bytes, or the given kinds; 0 if it has ended."""
    try:
        lines = Path("/proc", pid, "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))
