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

        def selected(batch: pa.RecordBatch) -> pa.Table:
            return pa.Table.from_batches([batch]).select(names)

        with pq.ParquetFile(self.file, pre_buffer=False) as opened:
            # Unlike a loop, map does not keep a batch in memory while the next one is read.
            yield from map(selected, opened.iter_batches(BATCH_ROWS, columns=names))


def in_blocks(batches: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of `batches` again in tables of `rows` rows; the last one may be shorter.

    A block that was yielded is not kept while the next one is read.
    """
    waiting: list[pa.Table] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        del batch
        while count >= rows:
            count -= rows
            yield _taken(waiting, rows)
    if count:
        yield _taken(waiting, count)


def _taken(waiting: list[pa.Table], rows: int) -> pa.Table:
    """Remove the first `rows` rows from the tables and return them as one, whose columns are joined one by one."""
    table = pa.concat_tables(waiting)
    waiting[:] = [table.slice(rows)] if len(table) > rows else []
    schema, columns = table.schema, table.slice(0, rows).columns
    del table
    return pa.table([columns.pop(0).combine_chunks() for _ in schema], schema=schema)
