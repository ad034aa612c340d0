"""The statistics of a study: means and deviations over seeds, differences paired by seed, t-intervals.

All figures are points (percent). With few seeds an interval is wide, as it should be: the t-distribution knows how
little a deviation of three numbers is worth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from flows.study.plan import COMPARISONS, Comparison

CONFIDENCE: Final = 0.95
METRICS: Final = (("mAP", "mAP"), ("rank1", "R1"), ("mINP", "mINP"))
"""Columns of the rows that tables show, and the names people know them by."""

_TEXT, _NUMBER, _SHARE = pa.string(), pa.int64(), pa.float64()
RUNS: Final = pa.schema(
    [
        pa.field(name, kind)
        for kind, names in (
            (_TEXT, ("variant", "title", "group", "method", "captions")),
            (_NUMBER, ("seed",)),
            (_TEXT, ("status", "error", "mode")),  # ok, failed or skipped; null mode where there is no result
            (_SHARE, ("mAP", "mINP", "rank1", "rank5", "rank10")),  # fractions
            (pa.bool_(), ("cgi", "cff")),
            (_NUMBER, ("queries", "depth", "epochs", "steps")),
            (_SHARE, ("seconds",)),  # of the train stage; null where it went on from a checkpoint or was found
            (_TEXT, ("dataset", "dataset_hash")),
            (_NUMBER, ("n_query", "n_gallery")),
            (_TEXT, ("caption_artifact", "train", "evaluation")),  # fingerprints
        )
        for name in names
    ]
)
"""runs.parquet: one row a run and inference mode, or one row that says why a run has no result."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Numbers over seeds. deviation: of the sample (n - 1); it and the interval of the mean are None of one number."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: a variant in one inference mode. seconds: of training; None where not known."""

    variant: str
    title: str
    group: str
    mode: str
    metrics: Mapping[str, SeedMean]
    seconds: SeedMean | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The answer to one comparison, over the seeds that both lines have. better: seeds in which left is above right."""

    comparison: Comparison
    left: str
    right: str
    metrics: Mapping[str, SeedMean]
    better: int
    seeds: int


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Return mean, sample deviation and the 95 % t-interval of the mean of at least one number."""
    from scipy import stats  # takes a second

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return SeedMean(mean=mean, deviation=None, low=None, high=None, values=tuple(values))
    deviation = statistics.stdev(values, mean)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return SeedMean(mean=mean, deviation=deviation, low=mean - reach, high=mean + reach, values=tuple(values))


def table(rows: Iterable[Row]) -> list[Line]:
    """Return a line for every variant and mode that has results, in the order of `rows`."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault((row["variant"], row["mode"]), []).append(row)
    return [_line(mode, part) for (_, mode), part in found.items()]


def _line(mode: str, rows: Sequence[Row]) -> Line:
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    return Line(
        variant=rows[0]["variant"],
        title=rows[0]["title"],
        group=rows[0]["group"],
        mode=mode,
        metrics={key: seed_mean([100 * row[key] for row in rows]) for key, _ in METRICS},
        seconds=seed_mean(seconds) if seconds else None,
        seeds=len(rows),
    )


def differences(rows: Sequence[Row], comparisons: Sequence[Comparison] = COMPARISONS) -> list[Difference]:
    """Return the differences left - right, paired by seed, of the comparisons that have a seed with both."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault((row["variant"], row["mode"]), {})[row["seed"]] = row
    answers = []
    for comparison in comparisons:
        left, right = found.get(comparison.left, {}), found.get(comparison.right, {})
        seeds = sorted(left.keys() & right.keys())
        if seeds:
            answers.append(_difference(comparison, [(left[seed], right[seed]) for seed in seeds]))
    return answers


def _difference(comparison: Comparison, pairs: Sequence[tuple[Row, Row]]) -> Difference:
    points = {key: [100 * (left[key] - right[key]) for left, right in pairs] for key, _ in METRICS}
    return Difference(
        comparison=comparison,
        left=_name(pairs[0][0]),
        right=_name(pairs[0][1]),
        metrics={key: seed_mean(values) for key, values in points.items()},
        better=sum(value > 0 for value in points["mAP"]),
        seeds=len(pairs),
    )


def _name(row: Row) -> str:
    return f"{row['title']} ({row['mode']})"


def unfinished(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of runs without a result."""
    return [row for row in rows if row["status"] != "ok"]
