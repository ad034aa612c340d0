"""A computation in numbered parts that any number of workers share, each part written to a file of its own.

A worker claims a part by a file lock, which the kernel releases when the worker ends, however it ends. So nothing is
lost but the part that a killed worker was computing, and nothing is computed twice but that part. Without file locks
that reach other machines, a part may be computed twice, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.files import atomic_path
from data.process.locks import try_lock
from data.progress import ProgressFn

Arrays = Mapping[str, NDArray[Any]]
"""Content of a part: name -> array, of numbers or of text."""
_POLL_SECONDS: Final = 0.5
_PARTS: Final = 64
_MOST_ROWS: Final = 1024


class Parts:
    """The `count` parts of one computation in `folder`, which nothing else uses."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def missing(self) -> list[int]:
        """Return the numbers of the parts that do not exist yet."""
        there = {path.name for path in self.folder.glob("*.npz")}
        return [number for number in range(self.count) if f"{number:06d}.npz" not in there]

    def read(self, number: int) -> Arrays:
        """Return a part that exists."""
        with np.load(self._file(number), allow_pickle=False) as stored:
            return dict(stored)

    def work(self, compute: Callable[[int], Arrays], progress: ProgressFn) -> int:
        """Compute the parts that no other worker computes, until all exist; return how many were computed here.

        progress: called with (parts that exist, all parts, note) before each part and while others work.
        """
        done = 0
        while missing := self.missing():
            before = done
            for place, number in enumerate(missing):
                progress(self.count - len(missing) + place, self.count, "")
                done += self._try(number, compute)
            if done == before:
                progress(self.count - len(missing), self.count, "waiting for other workers")
                time.sleep(_POLL_SECONDS)
        return done

    def _try(self, number: int, compute: Callable[[int], Arrays]) -> bool:
        """Compute a part unless it exists or another worker computes it; return True if it was computed here."""
        claim = try_lock(self.folder / "claims" / str(number))
        if claim is None:
            return False
        with claim:
            if self._file(number).exists():
                return False
            with atomic_path(self._file(number)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **compute(number))  # type: ignore[arg-type]
        return True

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


def slices(rows: int, batch: int) -> list[slice]:
    """Return slices of `rows` rows, one per part, of whole batches, as one process would form them.

    There are enough parts for many workers, and none of a great many rows that a killed worker would lose.
    """
    step = max(min(rows // _PARTS, _MOST_ROWS) // batch, 1) * batch
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
