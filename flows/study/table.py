"""Statistics of a study: means and deviations over seeds, differences paired by seed, t-intervals.

All figures are points (percent). With few seeds an interval is wide, because a deviation of three numbers is itself
uncertain; Student's t accounts for that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flows.report.scores import METRICS
from flows.study.plan import COMPARISONS, Comparison
from flows.study.rows import RunRow, finished
from reid.evaluation.intervals import CONFIDENCE, Interval

COLUMNS: Final = tuple((key, dict(METRICS)[key]) for key in ("mAP", "rank1", "mINP"))
"""Metrics that the tables of a study show, with their names."""


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """The mean of numbers over seeds.

    deviation: of the sample (n - 1); it and the interval of the mean are None where there is only one number.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """A variant in one inference mode, over its seeds. seconds: of training; None where unknown."""

    variant: str
    title: str
    group: str
    mode: str
    metrics: Mapping[str, SeedMean]
    seconds: SeedMean | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The answer to one comparison, over the seeds that both sides have. better: seeds in which left exceeds right."""

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
        return SeedMean(mean=mean, deviation=None, interval=None, values=tuple(values))
    deviation = statistics.stdev(values, mean)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return SeedMean(mean=mean, deviation=deviation, interval=(mean - reach, mean + reach), values=tuple(values))


def variant_scores(rows: Sequence[RunRow]) -> list[VariantScores]:
    """Return the scores of every variant and mode that has a result, in the order of `rows`."""
    found: dict[tuple[str, str | None], list[RunRow]] = {}
    for row in finished(rows):
        found.setdefault((row.variant, row.mode), []).append(row)
    return [_variant_scores(part) for part in found.values()]


def _variant_scores(rows: Sequence[RunRow]) -> VariantScores:
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return VariantScores(
        variant=rows[0].variant,
        title=rows[0].title,
        group=rows[0].group,
        mode=rows[0].mode or "",
        metrics={key: seed_mean([100 * row.scores[key] for row in rows]) for key, _ in COLUMNS},
        seconds=seed_mean(seconds) if seconds else None,
        seeds=len(rows),
    )


def differences(rows: Sequence[RunRow], comparisons: Sequence[Comparison] = COMPARISONS) -> list[Difference]:
    """Return the differences left - right, paired by seed, of the comparisons that have a seed with both sides."""
    found: dict[tuple[str, str | None], dict[int, RunRow]] = {}
    for row in finished(rows):
        found.setdefault((row.variant, row.mode), {})[row.seed] = row
    answers = []
    for comparison in comparisons:
        left, right = found.get(comparison.left, {}), found.get(comparison.right, {})
        seeds = sorted(left.keys() & right.keys())
        if seeds:
            answers.append(_difference(comparison, [(left[seed], right[seed]) for seed in seeds]))
    return answers


def _difference(comparison: Comparison, pairs: Sequence[tuple[RunRow, RunRow]]) -> Difference:
    points = {key: [100 * (left.scores[key] - right.scores[key]) for left, right in pairs] for key, _ in COLUMNS}
    return Difference(
        comparison=comparison,
        left=_side(pairs[0][0]),
        right=_side(pairs[0][1]),
        metrics={key: seed_mean(values) for key, values in points.items()},
        better=sum(value > 0 for value in points["mAP"]),
        seeds=len(pairs),
    )


def _side(row: RunRow) -> str:
    return f"{row.title} ({row.mode})"
