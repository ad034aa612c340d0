"""Mean, deviation and t-interval of numbers over seeds.

With few seeds an interval is wide, because a deviation of three numbers is itself uncertain; Student's t accounts for
that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reid.evaluation.intervals import CONFIDENCE, Interval


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """The mean of numbers over seeds.

    deviation: of the sample (n - 1); it and the interval of the mean are None where there is only one number.
    """

    mean: float
    deviation: float | None
    interval: Interval | None
    values: tuple[float, ...]


def seed_mean(values: Sequence[float]) -> SeedMean:
    """Return mean, sample deviation and the 95 % t-interval of the mean of at least one number."""
    from scipy import stats  # takes a second

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return SeedMean(mean=mean, deviation=None, interval=None, values=tuple(values))
    deviation = statistics.stdev(values, mean)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return SeedMean(mean=mean, deviation=deviation, interval=(mean - reach, mean + reach), values=tuple(values))
