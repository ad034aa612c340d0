"""Text columns as numbers: one code per distinct text, across batches, and counts of codes per group."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Code = NDArray[np.int32]
"""Codes of texts, -1 for null, [N]."""


_AT_ONCE: Final = 1 << 16


class Codes:
    """The codes of the texts of one column, in the order in which they were first seen. values: code -> text."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._known: dict[str, int] = {}

    def encode(self, column: pa.Array) -> Code:
        """Return the code of each text."""
        encoded = column.dictionary_encode()
        codes = np.array([self._code(text) for text in encoded.dictionary.to_pylist()], dtype=np.int32)
        return np.append(codes, np.int32(-1))[encoded.indices.fill_null(len(codes)).to_numpy()]

    def _code(self, text: str) -> int:
        code = self._known.setdefault(text, len(self.values))
        if code == len(self.values):
            self.values.append(text)
        return code

    def decode(self, codes: Code) -> pa.Array:
        """Return the texts of codes."""
        return pa.array(self.values, pa.string()).take(pa.array(codes, mask=codes < 0))

    def ranks(self) -> NDArray[np.int64]:
        """Return code -> place of its text in the order of texts."""
        ranks = np.empty(len(self.values), dtype=np.int64)
        ranks[sorted(range(len(self.values)), key=self.values.__getitem__)] = np.arange(len(self.values))
        return ranks


class CellCodes:
    """The codes of cells of any type, in the order in which they were first seen. values: code -> cell.

    Equal numbers of different types are different cells, because a message shows a cell as it is stored.
    """

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[object, int] = {}

    def encode(self, column: pa.Array) -> Code:
        """Return the code of each cell; null is a cell too."""
        try:
            encoded = column.dictionary_encode("encode")
        except pa.ArrowNotImplementedError:  # of a rare type
            return np.array([self._code(cell) for cell in column.to_pylist()], dtype=np.int32)
        codes = np.array([self._code(cell) for cell in encoded.dictionary.to_pylist()], dtype=np.int32)
        return codes[encoded.indices.to_numpy()]

    def _code(self, cell: object) -> int:
        key = cell if cell is None or isinstance(cell, str) else (type(cell), repr(cell))
        code = self._known.setdefault(key, len(self.values))
        if code == len(self.values):
            self.values.append(cell)
        return code


def pair_codes(left: Code, right: Code) -> tuple[Code, list[int]]:
    """Return a code for each pair of codes, in the order in which they were first seen, and the first row of each.

    left, right: without nulls, [N] each.
    """
    known, firsts, found = dict[int, int](), list[int](), np.empty(len(left), dtype=np.int32)
    for start in range(0, len(left), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        pairs = left[rows].astype(np.int64) << 32 | right[rows]
        values, first, at = np.unique(pairs, return_index=True, return_inverse=True)
        codes = np.empty(len(values), dtype=np.int32)
        for place in np.argsort(first).tolist():
            codes[place] = known.setdefault(int(values[place]), len(known))
            if codes[place] == len(firsts):
                firsts.append(start + int(first[place]))
        found[rows] = codes[at]
    return found, firsts


class Votes(NamedTuple):
    """How often a group has a code, one entry per group and code that occur together, [M], sorted by both.

    totals: number of codes of the group of each entry.
    """

    groups: NDArray[np.int32]
    codes: Code
    counts: NDArray[np.int32]
    totals: NDArray[np.int32]

    def leaders(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the entry with the most votes of each group, in the order of groups; of equals, that of least rank."""
        order = np.lexsort((ranks[self.codes], -self.counts, self.groups))
        return order[np.append(True, np.diff(self.groups[order]) != 0)[: len(order)]]


def votes(groups: NDArray[np.int64], codes: Code) -> Votes:
    """Count the codes, [N], of each group, [N], numbered from 0; null is not counted."""
    counted = codes >= 0
    width = int(codes.max(initial=0)) + 1
    entries, counts = np.unique(groups[counted] * width + codes[counted], return_counts=True)
    of_group, of_code = (entries // width).astype(np.int32), (entries % width).astype(np.int32)
    totals = np.bincount(of_group, weights=counts)[of_group] if len(entries) else counts
    return Votes(of_group, of_code, counts.astype(np.int32), totals.astype(np.int32))
