"""Readers of the rows that the report shows, from finished artifacts.

Of large tables (a ranking stores fifty neighbors per query), only the columns that decide what is shown are read in
full; whole rows are read for the shown ones only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest
from data.errors import DataError

Row = dict[str, Any]


def read_rows(path: Path, columns: Sequence[str] | None = None, *, pid: int | None = None) -> list[Row]:
    """Return the rows of a Parquet file, with all columns or only `columns`, of all identities or only `pid`."""
    filters = None if pid is None else [("pid", "==", pid)]
    return pq.read_table(path, columns=list(columns) if columns else None, filters=filters).to_pylist()


def take_rows(path: Path, indices: Sequence[int]) -> list[Row]:
    """Return the rows of a Parquet file at `indices`, in that order."""
    return pq.read_table(path).take(pa.array(list(indices), pa.int64())).to_pylist()


def distinct(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Return the distinct values of each column, sorted, without nulls."""
    table = pq.read_table(path, columns=list(columns))
    return {name: sorted(pc.unique(table[name]).drop_null().to_pylist()) for name in columns}


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


def draw_evenly(keys: Sequence[Any], count: int, *, seed: int, name: str) -> list[int]:
    """Draw up to `count` positions with `seed`: one of each key first, then a second of each, and so on.

    keys: the group of each position (an identity, a status). name: name of the draw, so that two draws differ.
    """
    groups: dict[Any, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    order = sorted(groups, key=lambda key: digest([seed, name, key]))
    for key in order:
        groups[key].sort(key=lambda position: digest([seed, name, position]))
    turns = min(count, max((len(group) for group in groups.values()), default=0))
    rounds = ([groups[key][turn] for key in order if turn < len(groups[key])] for turn in range(turns))
    return list(chain.from_iterable(rounds))[:count]


def thirds(rows: Sequence[Row], count: int, *, value: str, key: str, seed: int) -> tuple[list[int], ...]:
    """Choose the positions of up to `count` rows each with the lowest, median and highest `value`, without repeats.

    The lowest and the highest are at most a third of the rows each, so that with few rows a high value is not among the
    lowest. A `key` (identity) is repeated only if there are no others; `seed` orders rows of equal value. Each part is
    sorted by `value`.
    """
    order = sorted(range(len(rows)), key=lambda at: (rows[at][value], digest([seed, "query", rows[at][key], at])))
    rank_of = {at: rank for rank, at in enumerate(order)}
    middle = len(order) // 2
    preferences = (order, order[::-1], sorted(order, key=lambda at: (abs(rank_of[at] - middle), rank_of[at])))
    key_of = [row[key] for row in rows]
    unused, keys, parts = set(order), set[Any](), []
    outer = min(count, len(rows) // 3)
    for preference, size in zip(preferences, (outer, outer, count), strict=True):
        part = _pick([at for at in preference if at in unused], size, key_of, keys)
        unused.difference_update(part)
        parts.append(sorted(part, key=rank_of.__getitem__))
    lowest, highest, median = parts
    return lowest, median, highest


def _pick(candidates: Sequence[int], count: int, key_of: Sequence[Any], keys: set[Any]) -> list[int]:
    """Return up to `count` candidates, those with keys not in `keys` first; add their keys to `keys`."""
    found: list[int] = []
    for fresh_only in (True, False):
        for at in candidates:
            if len(found) < count and at not in found and not (fresh_only and key_of[at] in keys):
                found.append(at)
                keys.add(key_of[at])
    return found


def counts(values: Iterable[str]) -> list[tuple[str, int]]:
    """Count `values`; sort by descending count, then by name."""
    return sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
