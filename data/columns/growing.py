"""Text columns that arrive in batches and are never held twice."""

from __future__ import annotations

from array import array

import numpy as np
import pyarrow as pa


class GrowingTexts:
    """Texts without nulls that arrive in batches and become one column; no copy is made at the end."""

    def __init__(self) -> None:
        self._content, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        """Return the number of texts so far."""
        return len(self._ends) - 1

    def extend(self, texts: pa.Array) -> None:
        """Add a batch of texts."""
        column = texts.cast(pa.large_string())
        _, offsets, content = column.buffers()
        if not len(column):
            return
        ends = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        self._ends.frombytes((ends[1:] + (len(self._content) - ends[0])).tobytes())
        if content is not None:
            self._content += memoryview(content)[ends[0] : ends[-1]]

    def build(self) -> pa.LargeStringArray:
        """Return the column. Nothing can be added afterwards."""
        buffers = [None, pa.py_buffer(self._ends), pa.py_buffer(self._content)]
        return pa.Array.from_buffers(pa.large_string(), len(self), buffers)
