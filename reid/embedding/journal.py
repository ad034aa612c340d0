"""Embeddings that are computed but not yet part of a finished file, kept so that a killed command continues.

Layout of the folder::

    identity.json      what the embeddings depend on; another identity starts anew
    embeddings.f32     rows of D float32 values
    keys.txt           one line per row: the key of its image

Rows are flushed to disk before their keys, so that every complete line has a complete row, however the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.files import read_json, write_json

Float32s = NDArray[np.float32]


class Journal:
    """The rows in `folder`, for one identity and width D. One process at a time may use a folder."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], width: int) -> None:
        self.folder = folder
        self.width = width
        self._identity, self._vectors, self._keys = (
            folder / name for name in ("identity.json", "embeddings.f32", "keys.txt")
        )
        folder.mkdir(parents=True, exist_ok=True)
        if self._recorded() != dict(identity):
            self._vectors.unlink(missing_ok=True)
            self._keys.unlink(missing_ok=True)
            write_json(self._identity, dict(identity))
        self._rows = {key: row for row, key in enumerate(self._repair())}

    def __contains__(self, key: str) -> bool:
        """Return True if the embedding of `key` is there."""
        return key in self._rows

    def append(self, keys: Sequence[str], vectors_ND: Float32s) -> None:
        """Add the embeddings of new keys; they are on disk when this returns."""
        if not keys:
            return
        _append(self._vectors, np.ascontiguousarray(vectors_ND, np.float32).tobytes())
        _append(self._keys, "".join(f"{key}\n" for key in keys).encode())
        first = len(self._rows)
        self._rows |= {key: first + number for number, key in enumerate(keys)}

    def read(self, keys: Iterable[str]) -> Float32s:
        """Return the embeddings of `keys`, float32 [N, D], in that order. Raises KeyError for a key without one."""
        rows = [self._rows[key] for key in keys]
        if not rows:
            return np.empty((0, self.width), np.float32)
        stored = np.memmap(self._vectors, np.float32, "r", shape=(len(self._rows), self.width))
        return np.asarray(stored[rows])

    def _recorded(self) -> Any:
        try:
            return read_json(self._identity)
        except (DataError, FileNotFoundError):
            return None

    def _repair(self) -> list[str]:
        """Remove what a killed process left incomplete, and return the keys."""
        for path in (self._vectors, self._keys):
            path.touch()
        lines = self._keys.read_bytes().split(b"\n")[:-1]
        row_bytes = 4 * self.width
        count = min(len(lines), self._vectors.stat().st_size // row_bytes)
        os.truncate(self._vectors, count * row_bytes)
        os.truncate(self._keys, sum(len(line) + 1 for line in lines[:count]))
        return [line.decode("ascii") for line in lines[:count]]


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
