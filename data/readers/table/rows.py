"""The labels of all rows of a table as columns, and the records made of the rows that are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.codes import Code, pair_codes
from data.columns.records import Ints, Records, by_split, code_of_split, order_of
from data.people import JUNK, Mask
from data.readers.base import MAX_INT64, Collector, Unusable
from data.readers.table.coded import Cell, CodedRows, Row
from data.readers.table.labels import COLUMN_PID, Cameras, Identities, Mixed
from data.splits import GALLERY, SPLITS

T = TypeVar("T")
V = TypeVar("V")
_FINE: Final = np.zeros((), dtype=np.int32)


class Labels(NamedTuple):
    """The labels of some rows, [M]. labels: places in `RowLabels.texts`."""

    splits: NDArray[np.int8]
    pids: Ints
    camids: Ints
    labels: Code


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """The labels of each row of a table, [N], as codes of the distinct ones.

    splits: places in `data.splits.SPLITS`. identities: places in `pids` and `labels`. cameras: places in `camids`.
    labels: places in `texts`. refused: place of the reason in `problems` why a row cannot be used; problems[0] is None.
    huge: numbers that do not fit into 64 bits, by the place of their identity, whose pid is the largest that fits.
    """

    splits: NDArray[np.int8]
    identities: Code
    cameras: Code
    pids: Ints
    labels: Code
    camids: Ints
    texts: Sequence[str]
    refused: Code
    problems: Sequence[Unusable | None]
    huge: Mapping[int, int]
    notices: Sequence[str]

    def of(self, rows: Ints) -> Labels:
        """Return the labels of some rows."""
        identities = self.identities[rows]
        camids = self.camids[self.cameras[rows]]
        return Labels(self.splits[rows], self.pids[identities], camids, self.labels[identities])


def read_labels(file: Path, table: CodedRows, split_of: Callable[[Cell], str], mixed: Mixed = COLUMN_PID) -> RowLabels:
    """Return the labels of all rows; each distinct cell is read once. Raises DataError like `Identities`.

    split_of: returns the split in a cell; raises Unusable. The codes of `table` are forgotten.
    """
    read = _Cells()
    pairs, rows = _identity_rows(table)
    identities = Identities(file, rows, mixed)
    cameras, camera_rows = table.take_codes("camid"), [_row(camid=cell) for cell in table.cells["camid"]]
    known = Cameras(camera_rows)
    in_split, splits = table.take_codes("split"), read.each(table.cells["split"], split_of, GALLERY)
    named = read.each(rows, identities.of, (0, ""))
    numbers = read.each(camera_rows, known.of, 0)
    texts = {text: place for place, text in enumerate(dict.fromkeys(["", *(label for _, label in named.values)]))}
    return RowLabels(
        splits=np.array([code_of_split(split) for split in splits.values], dtype=np.int8)[in_split],
        identities=pairs,
        cameras=cameras,
        pids=np.array([min(pid, MAX_INT64) for pid, _ in named.values], dtype=np.int64),
        labels=np.array([texts[label] for _, label in named.values], dtype=np.int32),
        camids=np.array(numbers.values, dtype=np.int64),
        texts=list(texts),
        refused=_first_problem(len(pairs), (splits, in_split), (named, pairs), (numbers, cameras)),
        problems=read.problems,
        huge={place: pid for place, (pid, _) in enumerate(named.values) if pid > MAX_INT64},
        notices=[*identities.notices, *known.notices],
    )


def _identity_rows(table: CodedRows) -> tuple[Code, list[Row]]:
    """Return the place of each row's (pid, label) among the distinct ones, and the first row with each of these."""
    pids, labels = table.take_codes("pid"), table.take_codes("label")
    pairs, firsts = pair_codes(pids, labels)
    rows = [
        _row(place=table.place(row), pid=table.cells["pid"][pids[row]], label=table.cells["label"][labels[row]])
        for row in firsts
    ]
    return pairs, rows


def _row(*, place: str = "", pid: Cell = None, camid: Cell = None, label: Cell = None) -> Row:
    return Row(place, None, None, pid, camid, label, None)


class _Values(NamedTuple, Generic[V]):
    """What distinct cells mean, and the place of the problem of each, 0 for none."""

    values: list[V]
    refused: list[int]


class _Cells:
    """Reads distinct cells and collects their problems."""

    def __init__(self) -> None:
        self.problems: list[Unusable | None] = [None]

    def each(self, cells: Iterable[T], read: Callable[[T], V], otherwise: V) -> _Values[V]:
        """Return what `read` returns for each cell, or `otherwise` if it raises Unusable."""
        found = _Values[V]([], [])
        for cell in cells:
            try:
                value, problem = read(cell), 0
            except Unusable as error:
                value, problem = otherwise, len(self.problems)
                self.problems.append(error)
            found.values.append(value)
            found.refused.append(problem)
        return found


def _first_problem(count: int, *columns: tuple[_Values[Any], NDArray[Any]]) -> Code:
    """Return the problem of each of `count` rows: that of the first column that has one."""
    found: Code = np.broadcast_to(_FINE, count)  # takes no memory
    for values, codes in columns:
        if any(values.refused):
            problems = np.array(values.refused, dtype=np.int32)[codes]
            found = np.where(found, found, problems)
    return found


@dataclass
class Listed:
    """Rows whose labels and path can be used, [M]: their numbers, their paths, and their sentences if there are any."""

    rows: Ints
    paths: pa.Array
    sentences: pa.Array | None

    def sort(self) -> Ints:
        """Sort the rows by path; of equal paths, by number. Return their earlier places."""
        order = order_of(self.paths)
        self.rows, self.paths = self.rows[order], self.paths.take(pa.array(order))
        if self.sentences is not None:
            self.sentences = self.sentences.take(pa.array(order))
        return order


def records_of(collector: Collector, labels: RowLabels, listed: Listed, used: Mask) -> Records:
    """Return the records of the sorted rows that are used, sorted; junk and numbers that cannot be stored are left out.

    used: mask of the sorted rows.
    """
    identities = labels.identities[listed.rows]
    is_huge = used & np.isin(identities, np.array([*labels.huge], dtype=np.int32))
    for at in np.flatnonzero(is_huge).tolist():
        _reject_huge(collector, labels, int(listed.rows[at]), str(listed.paths[at]))
    is_junk = used & (labels.pids == JUNK)[identities] & (not collector.keep_junk)
    collector.n_junk += int(is_junk.sum())
    chosen = np.flatnonzero(used & ~is_huge & ~is_junk)
    order = chosen[by_split(labels.splits[listed.rows[chosen]])]
    del identities, is_huge, is_junk, chosen
    found, places = labels.of(listed.rows[order]), pa.array(order)
    return Records(
        paths=listed.paths.take(places),
        **found._asdict(),
        texts=labels.texts,
        sentences=None if listed.sentences is None else listed.sentences.take(places),
    )


def _reject_huge(collector: Collector, labels: RowLabels, row: int, path: str) -> None:
    """Reject a row whose identity cannot be stored."""
    one = labels.of(np.array([row]))
    split, pid = SPLITS[one.splits[0]], labels.huge[int(labels.identities[row])]
    collector.add(path, split, pid, int(one.camids[0]), labels.texts[one.labels[0]])
