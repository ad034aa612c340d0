"""The score of each query in one row of an evaluation, and the pairs of queries of two evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.columns.digests import numbered, places
from data.columns.texts import Texts
from data.errors import DataError
from data.stages.images import ImageDigests
from flows.comparison.images import TestImages
from flows.comparison.runs import RankedRow

MatchedBy = Literal["path", "content"]
_COLUMNS: Final = ("model", "mode", "query_path", "query_pid", "query_camid", "ap", "inp", "first_hit", "n_relevant")


@dataclass(frozen=True, kw_only=True)
class ScoredQueries:
    """Scores of the queries [Q] of one row, in the order of rankings.parquet."""

    path: Texts
    pid: NDArray[np.int64]
    camid: NDArray[np.int64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_hit: NDArray[np.int64]
    n_relevant: NDArray[np.int64]

    def take(self, at: NDArray[np.int64]) -> ScoredQueries:
        """Return the queries at some places, in that order."""
        return ScoredQueries(
            path=self.path[at],
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
            path=Texts(table["query_path"]),
            pid=table["query_pid"].to_numpy().astype(np.int64),
            camid=table["query_camid"].to_numpy().astype(np.int64),
            ap=table["ap"].to_numpy().astype(np.float64),
            inp=table["inp"].to_numpy().astype(np.float64),
            first_hit=table["first_hit"].to_numpy().astype(np.int64),
            n_relevant=table["n_relevant"].to_numpy().astype(np.int64),
        )
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"compare: {path} cannot be read ({error}); evaluate again") from error
    if not len(found.path):
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
    by_content = first is not None and second is not None
    if first is not None and second is not None:
        ours, theirs = _contents(baseline.path, first.digests), _contents(run.path, second.digests)
        place, back = places(theirs, ours), places(ours, theirs)
    else:
        place, back = baseline.path.places_in(run.path), run.path.places_in(baseline.path)
    return Paired(
        baseline=baseline.take(np.flatnonzero(place >= 0)),
        run=run.take(place[place >= 0]),
        only_baseline=tuple(sorted(baseline.path[place < 0])),
        only_run=tuple(sorted(run.path[back < 0])),
        matched_by="content" if by_content else "path",
    )


def _contents(paths: Texts, images: ImageDigests) -> NDArray[np.bytes_]:
    """Return digest and number of each query, copies of one file being numbered in the order of their paths."""
    by_path = pc.sort_indices(paths.array).to_numpy()
    found = numbered(images.of(paths)[by_path])
    back = np.empty_like(by_path)
    back[by_path] = np.arange(len(by_path))
    return found[back]
