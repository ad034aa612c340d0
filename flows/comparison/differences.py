"""Paired differences of metrics with their intervals, of queries or of sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.bootstrap import Unit, mean_intervals
from reid.evaluation.intervals import Interval, verdict

TIE: Final = 1e-9
"""Scores that differ by less are equal."""


class Tally(NamedTuple):
    """Number of queries whose score is higher, lower and equal in the run than in the baseline."""

    won: int
    lost: int
    tied: int


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """The difference of one metric over the paired queries.

    baseline, run: percent. points: run - baseline. interval: 95 % interval of the points; None for too few queries.
    """

    key: str
    label: str
    baseline: float
    run: float
    points: float
    interval: Interval | None
    tally: Tally

    @property
    def verdict(self) -> str:
        """ "up" or "down" if the interval excludes zero, else "even"."""
        return verdict(self.interval)


def metric_differences(
    base: Mapping[str, NDArray[np.float64]],
    ours: Mapping[str, NDArray[np.float64]],
    identities: NDArray[np.int64],
    metrics: Sequence[tuple[str, str]],
    unit: Unit,
) -> tuple[MetricDifference, ...]:
    """Return the difference of every metric, ours - base, over paired queries.

    base, ours: metric -> fraction of each query. identities: of the queries. metrics: their keys and labels.
    """
    gains = np.stack([ours[key] - base[key] for key, _ in metrics], axis=1)
    units = identities if unit == "identities" else np.arange(len(identities))
    intervals = mean_intervals(gains, units)
    return tuple(
        MetricDifference(
            key=key,
            label=label,
            baseline=100 * float(base[key].mean()),
            run=100 * float(ours[key].mean()),
            points=100 * float(gains[:, at].mean()),
            interval=_points(intervals[at]) if intervals else None,
            tally=_tally(gains[:, at]),
        )
        for at, (key, label) in enumerate(metrics)
    )


def _points(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]


def _tally(gains: NDArray[np.float64]) -> Tally:
    won, lost = int((gains > TIE).sum()), int((gains < -TIE).sum())
    return Tally(won=won, lost=lost, tied=len(gains) - won - lost)
