"""Identities and cameras of a manifest: integers as they are, text numbered in sorted order."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

from data.errors import DataError, counted
from data.people import DISTRACTOR, JUNK, UNKNOWN_CAMERA
from data.readers.base import MAX_INT64, Unusable, number_labels
from data.readers.table.coded import Cell, Row
from data.sources.address import shown

# Integers as text; pandas writes "3.0" for integer columns that had missing values.
_INTEGER: Final = re.compile(r"\s*([+-]?\d{1,19})(?:\.0*)?\s*", re.ASCII)
# Text that is meant as a number, and therefore is not a name.
_NUMBER: Final = re.compile(r"\s*[+-]?\d*\.?\d*\s*", re.ASCII)
# What pandas, spreadsheets and databases write for a missing value.
_MISSING: Final = frozenset({"", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>", "#N/A"})
_SPECIAL: Final = (JUNK, DISTRACTOR)
_SHOWN: Final = 3


class Mixed(NamedTuple):
    """Words of the error about an identity that is text here and a number there. where: what holds it."""

    where: str
    remedy: str


COLUMN_PID: Final = Mixed(
    "the column pid",
    "Rename the column to label to read every value as text, or write integers from 0 up into all rows"
    f" ({JUNK} is junk)",
)


class Identities:
    """Identity and label text of each row of a manifest.

    The column pid has integers, or text; text is the label. Labels without an integer are numbered in sorted order,
    after the largest integer of the file. Raises DataError if pid has both (other than -1 and 0), if pid is text beside
    a column label, and if an identity has two labels.

    notices: labels that look alike, and labels of more than one identity.
    """

    def __init__(self, file: Path, rows: Sequence[Row], mixed: Mixed = COLUMN_PID) -> None:
        self._integers = {cell: _integer(cell) for cell in {row.pid for row in rows}}
        self._by_name = any(_is_name(cell) for cell in self._integers)
        if self._by_name:
            _check_names(file, rows, self._integers, mixed)
        self._pids = self._number(file, rows)
        self.notices = [*_alike(self._pids), *_shared(self._pids)]

    def _label(self, row: Row) -> str:
        if self._by_name:
            return _text(row.pid).strip() if _is_name(row.pid) else ""
        return _text(row.label)

    def _number(self, file: Path, rows: Sequence[Row]) -> dict[str, list[int]]:
        """Return label -> its identities, in order."""
        pairs = dict.fromkeys((self._label(row), self._pid(row.pid)) for row in rows)
        found: dict[str, list[int]] = {label: [] for label, _ in pairs if label}
        labels: dict[int, list[str]] = defaultdict(list)
        for label, pid in pairs:
            if label and pid is not None and pid not in _SPECIAL:
                found[label].append(pid)
                labels[pid].append(label)
        torn = {pid: texts for pid, texts in labels.items() if len(texts) > 1}
        if torn:
            shown = "; ".join(f"{pid} ({_list(map(repr, texts))})" for pid, texts in list(torn.items())[:_SHOWN])
            raise DataError(
                f"{file} has more than one label for {counted(len(torn), 'identity')}, such as pid {shown}. Give each"
                " pid one label, or remove the column pid to number the labels anew"
            )
        base = max([0, *(pid for _, pid in pairs if pid is not None)])
        free = number_labels(label for label, pids in found.items() if not pids)
        return {label: sorted(pids) or [base + free[label]] for label, pids in found.items()}

    def _pid(self, cell: Cell) -> int | None:
        number = self._integers[cell]
        return number if number is not None and JUNK <= number <= MAX_INT64 else None

    def of(self, row: Row) -> tuple[int, str]:
        """Return the identity and the label of a row ("" if it has none); raise Unusable if it has no identity."""
        pid, label = self._pid(row.pid), self._label(row)
        if pid is not None:
            return pid, label
        if label and (self._by_name or is_missing(row.pid)):
            if len(self._pids[label]) == 1:
                return self._pids[label][0], label
            raise Unusable("bad_pid", f"label {label!r} has the pids {_list(self._pids[label])}; write one of them")
        if self._by_name:
            raise Unusable("bad_pid", f"pid {row.pid!r} is neither a label nor {JUNK} for junk")
        raise Unusable("bad_pid", f"pid {row.pid!r} is not an integer from {JUNK} up")


def _check_names(file: Path, rows: Iterable[Row], integers: Mapping[Cell, int | None], mixed: Mixed) -> None:
    """Raise DataError if pid has labels and numbers, or if there is a column label too."""
    name: Row | None = None
    number: Row | None = None
    for row in rows:
        if _text(row.label):
            raise DataError(
                f"{file} has text in both pid and label, such as {row.pid!r} and {row.label!r} in {row.place}. Write"
                " integers from 0 up into pid, or remove one of the two columns"
            )
        if _is_name(row.pid):
            name = name or row
        elif not is_missing(row.pid) and integers[row.pid] not in _SPECIAL:
            number = number or row
    if name and number:
        raise DataError(
            f"{shown(file)} has text and numbers in {mixed.where}, such as {name.pid!r} in {name.place} and"
            f" {number.pid!r} in {number.place}. {mixed.remedy}"
        )


def _alike(pids: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a notice on labels that differ only in case, blanks or the encoding of accents."""
    same: dict[str, list[str]] = defaultdict(list)
    for label in pids:
        same[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    pairs = [sorted(labels) for labels in same.values() if len(labels) > 1]
    if not pairs:
        return []
    shown = "; ".join(" and ".join(map(repr, labels)) for labels in sorted(pairs)[:_SHOWN])
    return [f"{len(pairs)} label(s) look like another one but are different identities, such as {shown}"]


def _shared(pids: Mapping[str, Sequence[int]]) -> list[str]:
    shared = sorted(label for label, numbers in pids.items() if len(numbers) > 1)
    if not shared:
        return []
    shown = "; ".join(f"{label!r} (pid {_list(pids[label])})" for label in shared[:_SHOWN])
    return [f"{len(shared)} label(s) are used for more than one identity, such as {shown}"]


class Cameras:
    """Camera of each row of a manifest.

    If the column has text, all of its values are names, numbered in sorted order. A row without a value has an unknown
    camera.

    notices: a column with text and numbers.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        integers = {cell: _integer(cell) for cell in {row.camid for row in rows}}
        known = {cell: number for cell, number in integers.items() if number is not None and 0 <= number <= MAX_INT64}
        texts = {cell: str(cell).strip() for cell in integers if _is_name(cell)}
        names = texts | {cell: str(number) for cell, number in known.items()}
        numbers = number_labels(names.values())
        self._numbers = {cell: numbers[name] for cell, name in names.items()} if texts else known
        self.notices = [_mixed_cameras(texts.values(), known.values())] if texts and known else []

    def of(self, row: Row) -> int:
        """Return the camera of a row; raise Unusable if it is neither a number from 0 up, nor text, nor missing."""
        if row.camid in self._numbers:
            return self._numbers[row.camid]
        if is_missing(row.camid):
            return UNKNOWN_CAMERA
        raise Unusable("bad_camid", f"camid {row.camid!r} is not an integer from 0 up; leave it empty if it is unknown")


def _mixed_cameras(texts: Iterable[str], numbers: Iterable[int]) -> str:
    return (
        f"the column camid has text, such as {min(texts)!r}, and numbers, such as {min(numbers)}: each different value"
        " is a camera of its own"
    )


def is_missing(cell: object) -> bool:
    """Return True if a cell is empty or what other programs write for a missing value."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and cell.strip() in _MISSING)


def _is_name(cell: Cell) -> bool:
    """Return True if a cell is text that is neither a number nor a missing value."""
    return isinstance(cell, str) and not is_missing(cell) and not _NUMBER.fullmatch(cell)


def _integer(cell: Cell) -> int | None:
    """Return a whole number of any type, or its text, as an integer; None for anything else."""
    if isinstance(cell, str):
        match = _INTEGER.fullmatch(cell)
        return int(match[1]) if match else None
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() else None
    if isinstance(cell, Decimal):
        return int(cell) if cell.is_finite() and cell == cell.to_integral_value() else None
    return cell


def _text(cell: Cell) -> str:
    """Return a label as text in Unicode's composed form (NFC); "" if it is missing."""
    if isinstance(cell, str):
        return unicodedata.normalize("NFC", cell)
    return "" if is_missing(cell) else str(cell if (number := _integer(cell)) is None else number)


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
