"""The scores of single queries and sentences, read from the evaluations that the rows of a study name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.store import ArtifactStore
from flows.study.plan.main import UNTRAINED
from flows.study.rows import RunRow
from flows.study.statistics.bootstrap import SeedGains

IMAGES: Final = "rankings.parquet"
SENTENCES: Final = "text_rankings.parquet"
_KEYS: Final = {IMAGES: ("query_path",), SENTENCES: ("image_path", "number")}
_PIDS: Final = {IMAGES: "query_pid", SENTENCES: "pid"}

METRICS: Final = {IMAGES: ("mAP", "rank1", "mINP"), SENTENCES: ("t2i_mAP", "t2i_rank1")}
"""The metrics whose scores a file has, in the order of the columns of `QueryScores.values`."""


class QueryScores(NamedTuple):
    """Scores per query, or per sentence, sorted by key. values: fractions, the columns in the order of `METRICS`."""

    keys: tuple[tuple[str | int, ...], ...]
    pids: NDArray[np.int64]
    values: NDArray[np.float64]


class QueryReader:
    """Reads the evaluations of one store, each file once."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._read = cache(_read)

    def gains(self, pairs: Sequence[tuple[RunRow, RunRow]], file: str) -> list[SeedGains] | None:
        """Return the differences of each pair, query by query.

        None if a side has no such scores, or the sides of a pair have other queries (an oracle has none at all).
        """
        found = [self._gain(left, right, file) for left, right in pairs]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else None

    def _gain(self, left: RunRow, right: RunRow, file: str) -> SeedGains | None:
        ours, theirs = self._scores(left, file), self._scores(right, file)
        if ours is None or theirs is None or ours.keys != theirs.keys:
            return None
        return SeedGains(ours.values - theirs.values, ours.pids)

    def _scores(self, row: RunRow, file: str) -> QueryScores | None:
        if row.evaluation is None:
            return None
        model = "untrained" if row.variant == UNTRAINED else "trained"
        mode = row.mode if file == IMAGES else None
        return self._read(self._store.folder("evaluate", row.evaluation) / file, model, mode)


def _read(path: Path, model: str, mode: str | None) -> QueryScores | None:
    """Return the scores of one model and mode, or None if the file does not exist or lacks them."""
    columns, file = _KEYS[path.name], path.name
    try:
        names = [*columns, _PIDS[file], "ap", "first_hit", *(["inp"] if file == IMAGES else [])]
        filters = [("model", "=", model), *([("mode", "=", mode)] if mode else [])]
        frame = pq.read_table(path, columns=names, filters=filters).to_pandas()
    except (OSError, KeyError, pa.ArrowInvalid):
        return None
    if frame.empty:
        return None
    frame = frame.sort_values(list(columns), kind="stable")
    values = [frame["ap"], frame["first_hit"] <= 1, *([frame["inp"]] if file == IMAGES else [])]
    return QueryScores(
        keys=tuple(frame[list(columns)].itertuples(index=False, name=None)),
        pids=frame[_PIDS[file]].to_numpy(np.int64),
        values=np.column_stack([column.to_numpy(float) for column in values]),
    )
