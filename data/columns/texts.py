"""Text columns of millions of rows: Arrow memory, and a Python text only for the rows that are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Index = slice | NDArray[np.int64] | NDArray[np.bool_]
_AT_ONCE: Final = 1 << 14
_MOST_RUNS: Final = 16


class Texts(Sequence[str]):
    """A text column without nulls, [N]. An array, a mask or a slice selects a column, a number selects one text."""

    def __init__(self, texts: pa.ChunkedArray | pa.Array | Iterable[str]) -> None:
        if not isinstance(texts, pa.ChunkedArray | pa.Array):
            texts = pa.array(texts if isinstance(texts, list) else list(texts), pa.large_string())
        # Offsets of 64 bits: the texts of many rows take more than 2 GB.
        column = texts.cast(pa.large_string())
        self.array: pa.LargeStringArray = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

    @classmethod
    def joined(cls, columns: Iterable[pa.ChunkedArray]) -> Self:
        """Return the texts of several columns, one after the other."""
        chunks = [chunk for column in columns for chunk in column.cast(pa.large_string()).chunks]
        return cls(pa.chunked_array(chunks, pa.large_string()))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.array)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, index: Index) -> Texts: ...
    def __getitem__(self, index: int | np.integer[Any] | Index) -> str | Texts:
        """Return the text at a number, or the column of the texts at `index`."""
        if isinstance(index, int | np.integer):
            text: str = self.array[int(index)].as_py()
            return text
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Texts(self.array.slice(start, max(0, stop - start)))
            index = np.arange(start, stop, step)
        return Texts(self.array.take(pa.array(np.flatnonzero(index) if index.dtype == np.bool_ else index)))

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in order; a few thousand exist at a time."""
        for start in range(0, len(self), _AT_ONCE):
            yield from self.array.slice(start, _AT_ONCE).to_pylist()

    def __eq__(self, other: object) -> bool:
        """Return True if the other column has the same texts in the same order."""
        return isinstance(other, Texts) and self.array.equals(other.array)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the number of texts and the first ones."""
        return f"Texts({len(self)}: {', '.join(self[:3])}...)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        """Return the column as an Arrow array, for ``pa.array`` and ``pa.table``."""
        return self.array if type is None else self.array.cast(type)

    def tolist(self) -> list[str]:
        """Return the texts as a list, for a few rows."""
        found: list[str] = self.array.to_pylist()
        return found

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of bytes of each text in UTF-8, [N]."""
        found: NDArray[np.int64] = pc.binary_length(self.array).to_numpy(zero_copy_only=False)
        return found

    def places_in(self, known: Texts) -> NDArray[np.int64]:
        """Return for each text its first place in `known`, -1 if it is absent, [N]."""
        at = pc.index_in(self.array, value_set=known.array).fill_null(-1)
        return at.to_numpy(zero_copy_only=False).astype(np.int64)

    def sorted_distinct(self) -> Texts:
        """Return the distinct texts, sorted."""
        found = pc.unique(self.array)
        return Texts(found.take(pc.sort_indices(found)))


class TextPlaces:
    """Finds single texts of a column. If a text occurs more than once, its last place is found.

    Columns of a few ascending parts, as the paths of images.parquet are (one part per split), are searched as they are;
    others are sorted first.
    """

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._order: NDArray[np.int64] | None = None
        ends = [*_descents(texts), len(texts)]
        if len(ends) > _MOST_RUNS:
            self._order = pc.sort_indices(texts.array).to_numpy().astype(np.int64)
            self._texts, ends = texts[self._order], [len(texts)]
        self._runs = list(zip([0, *ends[:-1]], ends, strict=True))[::-1]

    def of(self, text: str) -> int:
        """Return the place of a text. Raises KeyError if the column does not have it."""
        place = self.find(text)
        if place is None:
            raise KeyError(text)
        return place

    def find(self, text: str) -> int | None:
        """Return the place of a text, None if the column does not have it."""
        for start, end in self._runs:
            at = bisect_right(self._texts, text, start, end) - 1
            if at >= start and self._texts[at] == text:
                return at if self._order is None else int(self._order[at])
        return None


def _descents(texts: Texts) -> NDArray[np.int64]:
    """Return the places of the texts that are less than the text before them."""
    if len(texts) < 2:
        return np.empty(0, dtype=np.int64)
    falls = pc.less(texts.array.slice(1), texts.array.slice(0, len(texts) - 1))
    return np.flatnonzero(falls.to_numpy(zero_copy_only=False)) + 1
