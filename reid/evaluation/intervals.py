"""95 % intervals of scores, and of the difference between two rankings of the same queries, for tables and pages.

The bootstrap resamples the queries with replacement; for a difference, the same ones for both rankings. It does not
cover the variation between training seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from data.columns.texts import Texts

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
SEED: Final = 0
MIN_QUERIES: Final = 6
"""Fewer queries have no interval: chance alone improves or worsens all of 5 queries in 1 of 16 cases."""
METHOD: Final = (
    f"{100 * CONFIDENCE:.0f} % interval (paired percentile bootstrap over queries, {RESAMPLES:,} resamples, "
    f"seed {SEED}; it does not cover other training seeds)"
)
"""Description of the interval of a difference, shown wherever one is shown."""
SCORE_METHOD: Final = METHOD.replace("paired percentile", "percentile")
"""Description of the interval of a score."""
_COLUMNS: Final = ("model", "mode", "query_path", "ap", "inp", "first_hit")
_AT_ONCE: Final = 1 << 22  # numbers in memory at a time

Values = Mapping[str, "NDArray[np.float64]"]
"""Metric -> its value for each query, [Q]."""
Key = TypeVar("Key")
Interval = tuple[float, float]
"""Low and high end, in points, or in percent for the interval of a score."""


@dataclass(frozen=True, kw_only=True)
class QueryScores:
    """Scores of each query by one model in one mode. values: metric -> fractions, one per path of `paths`."""

    paths: Texts
    values: Mapping[str, NDArray[np.float64]]


def read_query_scores(rankings: Path) -> dict[tuple[str, str], QueryScores]:
    """Return the scores of the queries of rankings.parquet by model and mode, the queries sorted by path."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(rankings, columns=list(_COLUMNS))
    table = table.sort_by([("query_path", "ascending")])
    found = {}
    for row in table.group_by(["model", "mode"], use_threads=False).aggregate([]).to_pylist():
        is_own = pc.and_(pc.equal(table["model"], row["model"]), pc.equal(table["mode"], row["mode"]))
        found[row["model"], row["mode"]] = _scores_of(table.filter(is_own))
    return found


def _scores_of(queries: pa.Table) -> QueryScores:
    from data.columns.texts import Texts

    first_hit = queries["first_hit"].to_numpy()
    return QueryScores(
        paths=Texts(queries["query_path"]),
        values={
            "mAP": queries["ap"].to_numpy().astype(float),
            "mINP": queries["inp"].to_numpy().astype(float),
            **{f"rank{rank}": (first_hit <= rank).astype(float) for rank in (1, 5, 10)},
        },
    )


def query_scores_of(metrics: Mapping[str, Any], rankings: Path) -> dict[tuple[str, str], QueryScores]:
    """Return `read_query_scores`, or nothing if the file does not exist or covers only the first drawn gallery."""
    drawn = metrics["protocol"].get("gallery_draws")
    return {} if drawn or not rankings.exists() else read_query_scores(rankings)


def intervals(ours: QueryScores | None, base: QueryScores | None) -> dict[str, Interval] | None:
    """Return for each metric the interval of the mean of ours - base, in points.

    None if a side is missing, the sides have different queries, or there are fewer than `MIN_QUERIES`.
    """
    return each_interval([differences(ours, base)])[0]


def differences(ours: QueryScores | None, base: QueryScores | None) -> Values | None:
    """Return metric -> ours - base of each query; None if a side is missing or the sides have different queries."""
    if ours is None or base is None or ours.paths != base.paths:
        return None
    return {key: ours.values[key] - base.values[key] for key in ours.values}


def each_interval(sets: Sequence[Values | None]) -> list[dict[str, Interval] | None]:
    """Return for each set of values, [Q] per metric, the intervals of their means in percent.

    None for None, and for fewer than `MIN_QUERIES` queries. Sets of equally many queries are resampled together, which
    gives the same intervals as one by one, in little more time than for one set.
    """
    found: list[dict[str, Interval] | None] = [None] * len(sets)
    alike: defaultdict[int, dict[int, Values]] = defaultdict(dict)
    for at, values in enumerate(sets):
        if values is not None:
            alike[len(next(iter(values.values())))][at] = values
    for count, some in alike.items():
        if count >= MIN_QUERIES:
            known = _of_means({(at, key): values[key] for at, values in some.items() for key in values})
            for at, values in some.items():
                found[at] = {key: known[at, key] for key in values}
    return found


def score_intervals(scores: QueryScores | None) -> dict[str, Interval] | None:
    """Return for each metric the interval of its mean, in percent; None without scores or below `MIN_QUERIES`."""
    return each_interval([None if scores is None else scores.values])[0]


def _of_means(values: Mapping[Key, NDArray[np.float64]]) -> dict[Key, Interval]:
    """Return name -> 100 times the interval of the mean of `values`, [Q] each; all are resampled alike."""
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(_resampled_means(np.stack(list(values.values()), axis=1)), [tail, 1 - tail], axis=0)
    return {name: (100 * float(one), 100 * float(other)) for name, one, other in zip(values, low, high, strict=True)}


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of the columns of `values`, [Q, M], in each resample, [RESAMPLES, M].

    The draws are those of `scipy.stats.bootstrap`. A mean is the product with the number of times that each query is
    drawn, which is several times faster than to gather the drawn values.
    """
    import numpy as np

    rng, count, found = np.random.default_rng(SEED), len(values), np.empty((RESAMPLES, values.shape[1]))
    at_once = max(1, min(RESAMPLES, _AT_ONCE // count))
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        times = np.empty((rows, count))
        for row in times:
            row[:] = np.bincount(rng.integers(0, count, count), minlength=count)
        found[start : start + rows] = times @ values / count
    return found


def verdict(interval: Interval | None) -> str:
    """Return "up" or "down" if the interval excludes zero, else "even"; the color of a difference follows from it."""
    low, high = interval or (0.0, 0.0)
    return "up" if low > 0 else "down" if high < 0 else "even"
