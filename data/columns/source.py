"""Rows that can be read several times, in batches, from a Parquet file or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS: Final = 1 << 16


class RowSource(Protocol):
    """A table of `n_rows` rows and the columns `names`."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield columns of the rows, in order; all columns if none is named."""


class TableRows:
    """The rows of a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.names = table.column_names
        self.n_rows = table.num_rows

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield the columns, in one batch."""
        yield self._table.select(list(columns)) if columns else self._table


class ParquetRows:
    """The rows of a Parquet file. Raises the errors of pyarrow for a file that cannot be read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with pq.ParquetFile(file) as opened:
            self.schema = opened.schema_arrow
            self.names = self.schema.names
            self.n_rows = opened.metadata.num_rows

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield the columns, up to `BATCH_ROWS` rows at a time."""
        names = list(columns) or self.names
        missing = [name for name in names if name not in self.names]
        if missing:
            raise KeyError(f"{self.file} lacks the column {missing[0]}")
        with pq.ParquetFile(self.file, pre_buffer=False) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, columns=names):
                yield pa.Table.from_batches([batch]).select(names)


def in_blocks(batches: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of `batches` again in tables of `rows` rows; the last one may be shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count < rows:
            continue
        table = pa.concat_tables(waiting)
        full = count - count % rows
        for start in range(0, full, rows):
            yield table.slice(start, rows).combine_chunks()
        waiting, count = [table.slice(full)], count - full
    if count:
        yield pa.concat_tables(waiting).combine_chunks()
