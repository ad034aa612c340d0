"""Readers of the rows that the report shows, from finished artifacts.

Of large tables (a ranking stores fifty neighbors per query), only the columns that decide what is shown are read in
full, as Arrow columns; whole rows are read, and become Python objects, for the shown ones only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.fingerprint import digest
from data.columns.distinct import equal_runs, one_array
from data.columns.source import ParquetRows
from data.errors import DataError

Row = dict[str, Any]
Ints = NDArray[np.int64]
_AT_ONCE: Final = 4096


def rows_where(path: Path, column: str, values: Sequence[Any], columns: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a Parquet file whose `column` has one of `values`, with all columns or only `columns`."""
    found: list[Row] = []
    names = list(columns) if columns else ParquetRows(path).names
    wanted = pa.array(values)
    for rows in ParquetRows(path).batches(*dict.fromkeys([*names, column])):
        found += rows.filter(pc.is_in(rows[column], value_set=wanted)).select(names).to_pylist()
    return found


def take_rows(path: Path, places: Sequence[int], columns: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a Parquet file at `places`, in that order, with all columns or only `columns`."""
    wanted = np.unique(np.asarray(places, dtype=np.int64))
    if not len(wanted):
        return []
    taken = pa.Table.from_batches(_batches_at(path, wanted, columns))
    return taken.take(pa.array(np.searchsorted(wanted, places))).to_pylist()


def _batches_at(path: Path, places: Ints, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows at sorted `places`; row groups without one of them are not read."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
        for number in np.unique(np.searchsorted(ends, places, side="right")).tolist():
            at = int(ends[number - 1]) if number else 0
            for batch in file.iter_batches(_AT_ONCE, row_groups=[number], columns=columns):
                own = places[slice(*np.searchsorted(places, [at, at + len(batch)]))]
                if len(own):
                    yield batch.take(pa.array(own - at))
                at += len(batch)


def distinct(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Return the distinct values of each column, sorted, without nulls."""
    found: dict[str, set[Any]] = {name: set() for name in columns}
    for rows in ParquetRows(path).batches(*columns):
        for name, values in found.items():
            values.update(pc.unique(rows[name]).drop_null().to_pylist())
    return {name: sorted(values) for name, values in found.items()}


def read_log(path: Path) -> dict[str, list[Row]]:
    """Return the lines of metrics.jsonl by kind (step, epoch, eval); none if the file does not exist."""
    kinds: dict[str, list[Row]] = {"step": [], "epoch": [], "eval": []}
    if not path.exists():
        return kinds
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            kinds.setdefault(row["kind"], []).append(row)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a line of a training log; delete the folder and train again"
            ) from error
    return kinds


def draw_evenly(keys: pa.Array | pa.ChunkedArray | Sequence[Any], count: int, *, seed: int, name: str) -> list[int]:
    """Draw up to `count` positions with `seed`: one of each key first, then a second of each, and so on.

    keys: the group of each position (an identity, a status). name: name of the draw, so that two draws differ.
    """
    groups = _Groups(keys, lambda position: digest([seed, name, position]))
    order = sorted(range(len(groups.keys)), key=lambda group: digest([seed, name, groups.keys[group]]))
    found: list[int] = []
    for turn in range(count):
        for group in order:
            if turn < groups.sizes[group] and len(found) < count:
                found.append(groups.members(group)[turn])
        if len(found) >= min(count, groups.total):
            break
    return found


class _Groups:
    """Positions by key. Only the members of the groups that are asked for are sorted, by `order`."""

    def __init__(self, keys: pa.Array | pa.ChunkedArray | Sequence[Any], order: Callable[[int], str]) -> None:
        column = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys)
        encoded = one_array(column).dictionary_encode()
        codes = encoded.indices.to_numpy()
        self.keys: list[Any] = encoded.dictionary.to_pylist()
        self.sizes = np.bincount(codes, minlength=len(self.keys))
        self.total = len(codes)
        self._ends = np.cumsum(self.sizes)
        self._positions = np.argsort(codes, kind="stable")
        self._order = order
        self._sorted: dict[int, list[int]] = {}

    def members(self, group: int) -> list[int]:
        """Return the positions of a group."""
        if group not in self._sorted:
            end = self._ends[group]
            members = self._positions[end - self.sizes[group] : end].tolist()
            self._sorted[group] = sorted(members, key=self._order)
        return self._sorted[group]


def thirds(values: NDArray[np.float64], keys: Ints, count: int, *, seed: int) -> tuple[list[int], ...]:
    """Choose the positions of up to `count` rows each with the lowest, median and highest value, without repeats.

    The lowest and the highest are at most a third of the rows each, so that with few rows a high value is not among the
    lowest. A key (identity) is repeated only if there are no others; `seed` orders rows of equal value. Each part is
    sorted by value. values, keys: of every row, [N].
    """
    order = np.argsort(values, kind="stable")
    for start, end in equal_runs([values[order]]):
        tied = order[start:end].tolist()
        order[start:end] = sorted(tied, key=lambda at: digest([seed, "query", keys[at].item(), at]))
    rank_of = np.empty_like(order)
    rank_of[order] = np.arange(len(order))
    from_middle = np.argsort(abs(np.arange(len(order)) - len(order) // 2), kind="stable")
    is_unused, taken, parts = np.ones(len(order), dtype=np.bool_), set[int](), []
    outer = min(count, len(order) // 3)
    for preference, size in zip((order, order[::-1], order[from_middle]), (outer, outer, count), strict=True):
        part = _pick(preference[is_unused[preference]], size, keys, taken)
        is_unused[part] = False
        parts.append(sorted(part, key=rank_of.__getitem__))
    lowest, highest, median = parts
    return lowest, median, highest


def _pick(candidates: Ints, count: int, key_of: Ints, keys: set[int]) -> list[int]:
    """Return up to `count` candidates, those with keys not in `keys` first; add their keys to `keys`."""
    found: list[int] = []
    for fresh_only in (True, False):
        for at in map(int, candidates):
            if len(found) >= count:
                return found
            key = int(key_of[at])
            if at not in found and not (fresh_only and key in keys):
                found.append(at)
                keys.add(key)
    return found


def counts(values: pa.ChunkedArray | pa.Array) -> list[tuple[str, int]]:
    """Count the texts of a column; sort by descending count, then by name."""
    found = [(entry["values"], entry["counts"]) for entry in pc.value_counts(values).to_pylist()]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))
