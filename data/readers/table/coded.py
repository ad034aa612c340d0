"""Rows of a table as columns: the distinct cells of its labels with their codes, and its paths and sentences."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from data.columns.codes import CellCodes, Code

CODED: Final = ("split", "pid", "camid", "label")
"""Columns of which `CodedRows` holds the distinct cells."""

Cell = str | int | float | Decimal | None


class Row(NamedTuple):
    """One row. place: where it is, for messages. The others are cells as stored; None if absent."""

    place: str
    path: Cell
    split: Cell
    pid: Cell
    camid: Cell
    label: Cell
    sentences: Any


class RowBatch(NamedTuple):
    """Some rows as columns. first: number of the first row. of: where they are, for messages; empty in a single file.

    columns: name -> cells as stored, for each of `COLUMNS`; a manifest may lack sentences.
    """

    first: int
    of: str
    columns: Mapping[str, pa.Array]


class Place(NamedTuple):
    """Where a batch begins: the number of rows before it, its first row in its file, and `RowBatch.of`."""

    start: int
    first: int
    of: str


class PathCells(NamedTuple):
    """The cells of a batch that are not coded. start: rows before it. sentences: None if there are none."""

    start: int
    paths: pa.Array
    sentences: pa.Array | None


@dataclass(kw_only=True)
class CodedRows:
    """All rows of a table, [N], as columns. codes: place of each cell of a column among its distinct `cells`.

    batches: the other columns, which `parts` hands out.
    """

    codes: dict[str, Code]
    cells: Mapping[str, Sequence[Any]]
    places: Sequence[Place]
    batches: list[PathCells]

    @classmethod
    def of(cls, batches: Iterable[RowBatch]) -> CodedRows:
        """Return the rows of all batches."""
        coders = {name: CellCodes() for name in CODED}
        codes = {name: array("i") for name in CODED}
        places, cells, start = list[Place](), list[PathCells](), 0
        for batch in batches:
            for name, coder in coders.items():
                codes[name].frombytes(coder.encode(batch.columns[name]).tobytes())
            places.append(Place(start, batch.first, batch.of))
            cells.append(PathCells(start, batch.columns["path"], batch.columns.get("sentences")))
            start += len(batch.columns["path"])
        return cls(
            codes={name: np.frombuffer(found, dtype=np.int32) for name, found in codes.items()},
            cells={name: coder.values for name, coder in coders.items()},
            places=places,
            batches=cells,
        )

    def take_codes(self, name: str) -> Code:
        """Return the codes of a column once, and forget them."""
        return self.codes.pop(name)

    def batch_of(self, row: int) -> int:
        """Return the number of the batch of a row."""
        return bisect_right(self.places, row, key=lambda place: place.start) - 1

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        start, first, of = self.places[self.batch_of(row)]
        return f"row {first + row - start}{of}"

    def parts(self) -> Iterator[PathCells]:
        """Yield the cells of each batch once, and forget them."""
        self.batches.reverse()
        while self.batches:
            yield self.batches.pop()


class NamedCell(NamedTuple):
    """One cell of a column that the caller names. place: its row, for messages. cell: as stored."""

    place: str
    path: Cell
    cell: Any
