"""Files and rows that are not used, as columns instead of an object for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns.growing import GrowingTexts
from data.columns.json_rows import RowDigest

BATCH_ROWS: Final = 1 << 14


class Rejected(NamedTuple):
    """One file or row that is not used. reason: a short code. detail: a sentence for people; may be empty.

    Both are part of the index fingerprint: another wording reruns the index of every dataset with such a file.
    """

    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class RejectedRows(Sequence[Rejected]):
    """The `Rejected` of each file or row, [N]; an object is made for each one that is asked for.

    columns: path, reason and detail, as large_string.
    """

    columns: pa.RecordBatch

    @classmethod
    def of(cls, rows: Iterable[Rejected]) -> RejectedRows:
        """Return the columns of `rows`, in their order."""
        found = RejectedBuilder()
        for row in rows:
            found.append(*row)
        return found.build()

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.columns.num_rows)

    @overload
    def __getitem__(self, at: int) -> Rejected: ...
    @overload
    def __getitem__(self, at: slice) -> RejectedRows: ...
    def __getitem__(self, at: int | slice) -> Rejected | RejectedRows:
        """Return one row, or some of them."""
        if isinstance(at, slice):
            return RejectedRows(self.columns.take(pa.array(np.arange(len(self))[at])))
        row = range(len(self))[at]
        return next(iter(self[row : row + 1]))

    def __iter__(self) -> Iterator[Rejected]:
        """Yield the rows; those of a batch are made together."""
        for part in self.batches():
            yield from map(Rejected._make, zip(*(column.to_pylist() for column in part.columns), strict=True))

    def __eq__(self, other: object) -> bool:
        """Return True if both have equal rows in the same order."""
        if isinstance(other, RejectedRows):
            return bool(self.columns.equals(other.columns))
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def batches(self) -> Iterator[pa.Table]:
        """Yield the columns in parts, as text of 32 bits; an empty part if there are no rows."""
        for start in range(0, max(1, len(self)), BATCH_ROWS):
            part = pa.table(self.columns.slice(start, BATCH_ROWS))
            yield part.cast(pa.schema([(name, pa.string()) for name in part.column_names]))

    def joined_in_order(self, other: RejectedRows) -> RejectedRows:
        """Return the rows of both, sorted."""
        return RejectedRows(pa.concat_batches([self.columns, other.columns])).in_order() if len(other) else self

    def in_order(self) -> RejectedRows:
        """Return the rows sorted by path, reason and detail."""
        return RejectedRows(_in_order(list(self.columns.columns)))

    def distinct(self) -> RejectedRows:
        """Return the sorted rows without those that are equal to the row before them."""
        later, earlier = self.columns.slice(1), self.columns.slice(0, max(0, len(self) - 1))
        differs = [pc.not_equal(*pair) for pair in zip(later.columns, earlier.columns, strict=True)]
        is_new = np.logical_or.reduce([mask.to_numpy(zero_copy_only=False) for mask in differs])
        return RejectedRows(self.columns.filter(pa.array(np.append(True, is_new)[: len(self)])))

    def counts(self) -> dict[str, int]:
        """Return reason -> number of rows, sorted."""
        found = pc.value_counts(self.columns["reason"])
        return dict(sorted(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True)))

    def first(self, reason: str) -> Rejected:
        """Return the first row with a reason."""
        return self[pc.index(self.columns["reason"], reason).as_py()]

    def digest(self) -> str:
        """Return the digest (`data.artifacts.fingerprint.digest`) of the list of the rows, each as a list."""
        found = RowDigest(canonical=True)
        for part in self.batches():
            found.update(part)
        return found.hexdigest()

    def odd_paths(self, other: RejectedRows) -> list[str]:
        """Return the distinct paths of the rows that only one side has, sorted."""
        mine, theirs = self._keys(), other._keys()
        odd = [
            rows.columns["path"].filter(pc.invert(pc.is_in(keys, value_set=known)))
            for rows, keys, known in ((self, mine, theirs), (other, theirs, mine))
        ]
        return sorted(pc.unique(pa.concat_arrays(odd)).to_pylist())

    def _keys(self) -> pa.Array:
        return pc.binary_join_element_wise(*self.columns.columns, pa.scalar("\0", pa.large_string()))


class RejectedBuilder:
    """Rows that arrive one at a time, stored as columns."""

    def __init__(self) -> None:
        self._columns = [GrowingTexts() for _ in Rejected._fields]
        self._waiting: list[tuple[str, str, str]] = []

    def __len__(self) -> int:
        """Return the number of rows so far."""
        return len(self._columns[0]) + len(self._waiting)

    def append(self, path: str, reason: str, detail: str = "") -> None:
        """Add one row."""
        self._waiting.append((path, reason, detail))
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        texts = zip(*self._waiting, strict=True) if self._waiting else ([] for _ in self._columns)
        for column, values in zip(self._columns, texts, strict=True):
            column.extend(pa.array(list(values), pa.large_string()))
        self._waiting = []

    def build(self) -> RejectedRows:
        """Return the rows in the order in which they were added. None can be added afterwards."""
        return RejectedRows(_batch(self._built()))

    def build_in_order(self) -> RejectedRows:
        """Return the rows sorted by path, reason and detail. None can be added afterwards."""
        return RejectedRows(_in_order(self._built()))

    def _built(self) -> list[pa.Array]:
        self._flush()
        columns, self._columns = self._columns, []
        return [column.build() for column in columns]


def _batch(columns: list[pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(columns, names=list(Rejected._fields))


def _in_order(columns: list[pa.Array]) -> pa.RecordBatch:
    """Return sorted rows; `columns` is emptied, so that not all of them are there twice."""
    order = pc.sort_indices(_batch(columns), sort_keys=[(name, "ascending") for name in Rejected._fields])
    columns.reverse()
    return _batch([columns.pop().take(order) for _ in Rejected._fields])
