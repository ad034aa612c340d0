"""Embeddings that are computed but not yet part of a finished file, kept so that a killed command continues.

Layout of the folder::

    identity.json      what the embeddings depend on; another identity starts anew
    embeddings.f32     rows of D float32 values
    keys.txt           one line per row: the key of its image, as sha256 or sha256:camera

Rows are flushed to disk before their keys, so that every complete line has a complete row, however the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.digests import WIDTH, digests_of, joined, texts_of
from data.errors import DataError
from data.files import read_json, write_json
from reid.embedding.images import Keys

Float32s = NDArray[np.float32]
_AT_ONCE: Final = 1 << 16
_DIGITS: Final = 2 * WIDTH


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
        self._count = self._repair()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def stored_keys(self) -> Iterator[Keys]:
        """Yield the keys of all rows in order, some at a time. Raises DataError if the file is damaged."""
        with self._keys.open("rb") as stream:
            while lines := list(islice(stream, _AT_ONCE)):
                try:
                    yield _keys_in(lines)
                except (ValueError, OverflowError) as error:
                    raise DataError(f"{self._keys} is damaged; delete {self.folder} and run again") from error

    def append(self, keys: Keys, vectors_ND: Float32s) -> None:
        """Add the embeddings of new keys; they are on disk when this returns."""
        if not len(keys):
            return
        _append(self._vectors, np.ascontiguousarray(vectors_ND, np.float32).tobytes())
        _append(self._keys, _lines_of(keys))
        self._count += len(keys)

    def read(self, rows: NDArray[np.int64]) -> Float32s:
        """Return the embeddings of some rows, float32 [N, D]."""
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        stored = np.memmap(self._vectors, np.float32, "r", shape=(self._count, self.width))
        return np.asarray(stored[rows])

    def _recorded(self) -> Any:
        try:
            return read_json(self._identity)
        except (DataError, FileNotFoundError):
            return None

    def _repair(self) -> int:
        """Remove what a killed process left incomplete, and return the number of rows."""
        for path in (self._vectors, self._keys):
            path.touch()
        row_bytes = 4 * self.width
        count, end = 0, 0
        with self._keys.open("rb") as stream:
            for line in islice(stream, self._vectors.stat().st_size // row_bytes):
                if not line.endswith(b"\n"):
                    break
                count, end = count + 1, end + len(line)
        os.truncate(self._vectors, count * row_bytes)
        os.truncate(self._keys, end)
        return count


def _keys_in(lines: Sequence[bytes]) -> Keys:
    digests = digests_of(pa.array([line[:_DIGITS] for line in lines]).cast(pa.string()))
    cameras = [line[_DIGITS + 1 :] for line in lines]
    return joined(digests, np.array([int(camera) for camera in cameras], np.int64)) if any(cameras) else digests


def _lines_of(keys: Keys) -> bytes:
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), keys.itemsize)
    digests = np.ascontiguousarray(raw[:, :WIDTH]).reshape(-1).view(f"S{WIDTH}")
    texts = texts_of(digests).to_pylist()
    if keys.itemsize > WIDTH:
        cameras = np.ascontiguousarray(raw[:, WIDTH:]).reshape(-1).view(np.int64)
        texts = [f"{text}:{camera}" for text, camera in zip(texts, cameras.tolist(), strict=True)]
    return "".join(f"{text}\n" for text in texts).encode()


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
