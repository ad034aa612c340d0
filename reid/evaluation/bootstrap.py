"""95 % intervals of paired differences, by a bootstrap that draws identities with all their queries.

The queries of one identity share its gallery images, so their scores are correlated; a bootstrap that draws queries one
by one treats them as independent, and its intervals are too narrow. The ends are those of the expanded percentile
interval (T. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69, 2015), because
the plain one is too narrow for few identities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.intervals import CONFIDENCE, MIN_QUERIES, SEED, Interval

Unit = Literal["identities", "queries"]
"""What the bootstrap draws."""
UNITS: Final[tuple[Unit, ...]] = get_args(Unit)
RESAMPLES: Final = 10_000
MIN_UNITS: Final = MIN_QUERIES
"""Fewer identities (or queries) have no interval."""
_BATCH: Final = 1 << 22  # numbers drawn at a time: 32 MiB


def mean_intervals(values: NDArray[np.float64], units: NDArray[np.int64]) -> list[Interval] | None:
    """Return the interval of the mean over queries of each column; None for fewer than `MIN_UNITS` units.

    values: [queries, metrics]. units: the unit (identity) of each query, which is drawn with all its queries.
    """
    numbers, unit = np.unique(units, return_inverse=True)
    if len(numbers) < MIN_UNITS:
        return None
    # A resampled mean is the sum over the drawn units divided by their number of queries, which the last column counts.
    sums = np.zeros((len(numbers), values.shape[1] + 1))
    np.add.at(sums, unit, np.column_stack([values, np.ones(len(unit))]))
    drawn = np.concatenate([counts @ sums for counts in _draws(len(numbers))])
    tail = _tail(len(numbers))
    ends = np.quantile(drawn[:, :-1] / drawn[:, -1:], [tail, 1 - tail], axis=0)
    return [(float(low), float(high)) for low, high in zip(*ends, strict=True)]


def _draws(n_units: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each unit is drawn, [resamples, units], in batches of `RESAMPLES` resamples together."""
    rng = np.random.default_rng(SEED)
    size = max(1, _BATCH // n_units)
    for first in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - first)
        places = rng.integers(n_units, size=(rows, n_units)) + n_units * np.arange(rows)[:, None]
        yield np.bincount(places.ravel(), minlength=rows * n_units).reshape(rows, n_units).astype(float)


def _tail(n_units: int) -> float:
    """Return the share of resamples beyond each end of the interval."""
    from scipy import special

    reach = math.sqrt(n_units / (n_units - 1)) * special.stdtrit(n_units - 1, (1 + CONFIDENCE) / 2)
    return float(special.ndtr(-reach))


def method(unit: Unit) -> str:
    """Return the description of the interval, shown wherever one is shown."""
    drawn = (
        "identities, each with all its queries, whose scores are correlated"
        if unit == "identities"
        else "queries as if they were independent, which those of one identity are not"
    )
    return (
        f"{100 * CONFIDENCE:.0f} % interval: paired bootstrap over {drawn} (expanded percentile, {RESAMPLES:,} "
        f"resamples, seed {SEED}); it does not cover other training seeds"
    )
