"""The score of each query in one row of an evaluation, and the pairs of queries of two evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import DataError
from flows.comparison.images import TestImages
from flows.comparison.runs import RankedRow

MatchedBy = Literal["path", "content"]
_COLUMNS: Final = ("model", "mode", "query_path", "query_pid", "query_camid", "ap", "inp", "first_hit", "n_relevant")


@dataclass(frozen=True, kw_only=True)
class ScoredQueries:
    """Scores of the queries [Q] of one row, in the order of rankings.parquet."""

    path: list[str]
    pid: NDArray[np.int64]
    camid: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_hit: NDArray[np.int64]
    n_relevant: NDArray[np.int64]

    def take(self, places: Sequence[int]) -> ScoredQueries:
        """Return the queries at `places`, in that order."""
        at = np.asarray(places, dtype=np.int64)
        return ScoredQueries(
            path=[self.path[place] for place in places],
            pid=self.pid[at],
            camid=self.camid[at],
            ap=self.ap[at],
            inp=self.inp[at],
            first_hit=self.first_hit[at],
            n_relevant=self.n_relevant[at],
        )

    def values(self) -> dict[str, NDArray[np.float64]]:
        """Return metric -> score of each query, fractions."""
        ranks = {f"rank{rank}": (self.first_hit <= rank).astype(float) for rank in (1, 5, 10)}
        return {"mAP": self.ap, "mINP": self.inp, **ranks}


class Paired(NamedTuple):
    """Queries of two rows, paired one to one, and the paths of those that only one row has."""

    baseline: ScoredQueries
    run: ScoredQueries
    only_baseline: tuple[str, ...]
    only_run: tuple[str, ...]
    matched_by: MatchedBy


def read_scores(ranked: RankedRow) -> ScoredQueries:
    """Return the scores of the queries of one row. Raises DataError when rankings.parquet does not have them."""
    path, row = ranked.run.rankings, ranked.row
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
        table = table.filter(pc.and_(pc.equal(table["model"], row.model), pc.equal(table["mode"], row.mode)))
        found = ScoredQueries(
            path=table["query_path"].to_pylist(),
            pid=table["query_pid"].to_numpy().astype(np.int64),
            camid=table["query_camid"].to_numpy().astype(np.int64),
            ap=table["ap"].to_numpy().astype(np.float64),
            inp=table["inp"].to_numpy().astype(np.float64),
            first_hit=table["first_hit"].to_numpy().astype(np.int64),
            n_relevant=table["n_relevant"].to_numpy().astype(np.int64),
        )
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"compare: {path} cannot be read ({error}); evaluate again") from error
    if not found.path:
        raise DataError(f"compare: {path} does not have rankings of the row {row}; evaluate again")
    return found


def pair_queries(
    baseline: ScoredQueries, run: ScoredQueries, images: tuple[TestImages | None, TestImages | None] = (None, None)
) -> Paired:
    """Pair the queries of two rows.

    images: the test images of both runs, if the content of both is known and differs: queries are then the same if
    their files have the same bytes. Otherwise they are the same if they have the same path.
    """
    first, second = images
    if first is not None and second is not None:
        ours, theirs = _by_content(baseline.path, first.digests), _by_content(run.path, second.digests)
    else:
        ours, theirs = _by_path(baseline.path), _by_path(run.path)
    shared = [key for key in ours if key in theirs]
    return Paired(
        baseline=baseline.take([ours[key] for key in shared]),
        run=run.take([theirs[key] for key in shared]),
        only_baseline=tuple(sorted(baseline.path[place] for key, place in ours.items() if key not in theirs)),
        only_run=tuple(sorted(run.path[place] for key, place in theirs.items() if key not in ours)),
        matched_by="content" if first is not None and second is not None else "path",
    )


_Key = tuple[str, int]
"""Path or digest of a query, and its number among those with the same one."""


def _by_path(paths: Sequence[str]) -> dict[_Key, int]:
    return {(path, 0): place for place, path in enumerate(paths)}


def _by_content(paths: Sequence[str], digests: Mapping[str, str]) -> dict[_Key, int]:
    """Return key -> place, copies of one file being numbered in the order of their paths."""
    keys: dict[_Key, int] = {}
    copies: dict[str, int] = {}
    for place in sorted(range(len(paths)), key=paths.__getitem__):
        sha256 = digests[paths[place]]
        keys[sha256, copies.get(sha256, 0)] = place
        copies[sha256] = copies.get(sha256, 0) + 1
    return dict(sorted(keys.items(), key=lambda item: item[1]))
