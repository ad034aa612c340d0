"""What the paired t-test over seeds can see, its p value, and Holm's adjustment for several questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

from flows.study.statistics.means import SeedMean
from reid.evaluation.intervals import CONFIDENCE

POWER: Final = 0.8
"""Chance to find a difference as large as `smallest_visible` returns."""


def smallest_visible(part: SeedMean) -> float | None:
    """Return the smallest difference that the two-sided paired t-test at 5 % finds with a chance of 80 %.

    The deviation and the number of seeds are those of `part`. None where there is only one number, or all are equal:
    such numbers say nothing about how much another seed would deviate.
    """
    if not part.deviation:
        return None
    n = len(part.values)
    return _visible_effect(n) * part.deviation / math.sqrt(n)


@cache
def _visible_effect(n: int) -> float:
    """Return the noncentrality at which the t-test of `n` differences has the power `POWER`."""
    from scipy import optimize, stats

    freedom = n - 1
    critical = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))

    def missing(effect: float) -> float:
        # The chance to find it with the wrong sign is left out: it is negligible where the power is 80 %.
        return float(stats.nct.sf(critical, freedom, effect)) - POWER

    return float(optimize.brentq(missing, 0.0, 2 * critical))


def p_value(part: SeedMean) -> float | None:
    """Return the two-sided p value of the paired t-test against zero; None where there is only one number."""
    from scipy import stats

    if part.deviation is None:
        return None
    if part.deviation == 0:
        return 1.0 if part.mean == 0 else 0.0
    n = len(part.values)
    return float(2 * stats.t.sf(abs(part.mean) * math.sqrt(n) / part.deviation, n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Return the p values adjusted by Holm's method (1979), in their order: compare them with 5 % for all together."""
    order = sorted(range(len(values)), key=values.__getitem__)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
