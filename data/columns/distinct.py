"""Text columns, worked on once per distinct value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_SPACE: Final = 0x20
_DELETE: Final = 0x7F


def each_distinct(column: pa.Array, function: Callable[[str], str | None]) -> pa.Array:
    """Return `function` of each text, called once per distinct one; nulls stay null."""
    encoded = column.dictionary_encode()
    values = pa.array([function(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return values.take(encoded.indices)


def content_of(column: pa.StringArray) -> NDArray[np.uint8]:
    """Return the bytes of all texts of a text column, one after the other."""
    content, ends = _content_and_ends(column)
    return content[ends[0] : ends[-1]]


def has_plain_ends(column: pa.StringArray) -> bool:
    """Return True if no text of a column without nulls begins or ends with a space or a character beyond ASCII."""
    content, ends = _content_and_ends(column)
    starts, stops = ends[:-1], ends[1:]
    has_text = stops > starts
    outer = np.concatenate([content[starts[has_text]], content[stops[has_text] - 1]])
    return bool(((outer > _SPACE) & (outer < _DELETE)).all())


def _content_and_ends(column: pa.StringArray) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return the bytes of a text column, and where in them each text ends, after where the first one begins."""
    _, offsets, content = column.buffers()
    if content is None:
        return np.empty(0, dtype=np.uint8), np.zeros(len(column) + 1, dtype=np.int32)
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(content, dtype=np.uint8), ends


def equal_runs(columns: Sequence[NDArray[Any]]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of two or more rows that are equal in all columns, [N] each."""
    is_same = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    steps = np.diff(np.concatenate([[False], is_same, [False]]).astype(np.int8))
    yield from zip(np.flatnonzero(steps == 1).tolist(), (np.flatnonzero(steps == -1) + 1).tolist(), strict=True)


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
