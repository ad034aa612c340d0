"""Text columns, worked on once per distinct value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def each_distinct(column: pa.Array, function: Callable[[str], str | None]) -> pa.Array:
    """Return `function` of each text, called once per distinct one; nulls stay null."""
    encoded = column.dictionary_encode()
    values = pa.array([function(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return values.take(encoded.indices)


def content_of(column: pa.Array) -> NDArray[np.uint8]:
    """Return the bytes of all texts of a text column, one after the other."""
    _, offsets, content = column.buffers()
    if content is None:
        return np.empty(0, dtype=np.uint8)
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(content, dtype=np.uint8)[ends[0] : ends[-1]]


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
