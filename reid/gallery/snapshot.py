"""A consistent state of a gallery, mapped into memory; later changes of the files do not affect it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import RetryableError
from reid.gallery.entry import EMBEDDING, Entry, Float32s, Int64s, entries_of, schema
from reid.gallery.layout import PARTS, Header, map_part, read_header, read_lists

_TRIES: Final = 20
_SLICES: Final = 1000
"""Up to so many rows, slices are faster than Arrow's `take`, which copies whole columns of text."""


class Snapshot:
    """The entries of a gallery at one moment, numbered from 0. `table` has all columns but the embeddings."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Map the files that `header` names.

        Raises FileNotFoundError if one was removed meanwhile, DataError if one is damaged.
        """
        self.folder = folder
        self.header = header
        full = schema(header.space.width)
        batches = [batch for part in header.parts for batch in map_part(folder, part, full)]
        self._full = pa.Table.from_batches(batches, full)
        self.table = self._full.drop_columns([EMBEDDING])
        self._batches = self.table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self.blocks = [_matrix(batch.column(EMBEDDING)) for batch in batches]
        self.lists = read_lists(folder / PARTS / header.index.name) if header.index else None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the current state. Raises the errors of `read_header`, and DataError if a part is damaged."""
        for _ in range(_TRIES):
            try:
                return cls(folder, read_header(folder))
            except FileNotFoundError:  # a writer replaced the part after the header was read
                continue
        raise RetryableError(f"{folder} keeps changing, or lacks a file that its header names; try again")

    def __len__(self) -> int:
        """Return the number of entries."""
        return int(self.table.num_rows)

    @cached_property
    def _digests(self) -> pa.Array:
        return self.table["sha256"].combine_chunks()

    def rows_of(self, digests: pa.Array | pa.ChunkedArray) -> Int64s:
        """Return the row of each content (sha256), or -1 if the gallery does not have it."""
        found = pc.index_in(digests, value_set=self._digests)
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)

    def take(self, rows: Int64s) -> list[Entry]:
        """Return the entries of `rows`, in that order."""
        if len(rows) > _SLICES or not len(rows):
            return entries_of(self.table.take(pa.array(rows, pa.int64())))
        batches = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends])
        slices = [self._batches[at].slice(row - starts[at], 1) for at, row in zip(batches, rows, strict=True)]
        return entries_of(pa.Table.from_batches(slices))

    def part_tables(self) -> list[pa.Table]:
        """Return each part with its embeddings."""
        tables, start = [], 0
        for part in self.header.parts:
            tables.append(self._full.slice(start, part.rows))
            start += part.rows
        return tables

    def embeddings(self, rows: Int64s) -> Float32s:
        """Return the embeddings of `rows`, float32 [N, D]."""
        found = np.empty((len(rows), self.header.space.width), np.float32)
        start = 0
        for block in self.blocks:
            here = (rows >= start) & (rows < start + len(block))
            found[here] = block[rows[here] - start]
            start += len(block)
        return found


def _matrix(column: pa.Array) -> Float32s:
    """Return a fixed-size-list column as a matrix over the same memory."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(len(column), column.type.list_size)
