"""Numbered rows that arrive in any order and are read back in the order of their numbers, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BLOCK_ROWS: Final = 1 << 17
"""Rows per block by default: about 100 MB of captions with all their columns."""

_NUMBER: Final = "_number"


class Shuffle:
    """Rows numbered from 0 to `total` - 1. Each number must be added once before the rows are read.

    Blocks of `rows` rows wait in files in `folder`, which is created and, at the end of the `with` block, removed; a
    single block waits in memory.
    """

    def __init__(self, total: int, folder: Path, *, rows: int = BLOCK_ROWS) -> None:
        self._total = total
        self._folder = folder
        self._rows = rows
        self._waiting: list[pa.Table] = []
        self._files: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Self:
        """Return the empty shuffle; remove what a killed process left in the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close and remove the files."""
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        for file in self._files.values():
            file.close()
        self._files = {}
        self._waiting = []
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self._total // self._rows)

    def add(self, numbers: NDArray[np.int64], rows: pa.Table) -> None:
        """Add rows of one schema. numbers: [N], in any order."""
        if not len(numbers):
            return
        numbered = rows.append_column(_NUMBER, pa.array(numbers, pa.int64()))
        if self.blocks <= 1:
            self._waiting.append(numbered)
            return
        block = numbers // self._rows
        order = np.argsort(block, kind="stable")
        sorted_rows = numbered.take(pa.array(order))
        found, starts = np.unique(block[order], return_index=True)
        for number, start, end in zip(found.tolist(), starts, [*starts[1:], len(order)], strict=True):
            self._write(number, sorted_rows.slice(start, end - start))

    def _write(self, block: int, rows: pa.Table) -> None:
        if block not in self._files:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._files[block] = pa.ipc.new_stream(self._file(block), rows.schema, options=options)
        self._files[block].write_table(rows)

    def _file(self, block: int) -> Path:
        return self._folder / f"{block:06d}.arrow"

    def read(self) -> Iterator[pa.Table]:
        """Yield the blocks in order, each with its rows in order. Raises ValueError for a number that is missing."""
        for block in range(self.blocks):
            rows = self._read(block)
            numbers = rows[_NUMBER].to_numpy()
            order = np.argsort(numbers)
            first = block * self._rows
            if not np.array_equal(numbers[order], np.arange(first, min(first + self._rows, self._total))):
                raise ValueError(f"rows {first} to {first + self._rows - 1} are incomplete or not distinct")
            yield rows.drop_columns([_NUMBER]).take(pa.array(order)).combine_chunks()

    def _read(self, block: int) -> pa.Table:
        if self.blocks == 1 and self._waiting:
            return pa.concat_tables(self._waiting)
        if block not in self._files:
            raise ValueError(f"block {block} has no rows")
        self._files.pop(block).close()
        path = self._file(block)
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            rows = stream.read_all()
        path.unlink()
        return rows
