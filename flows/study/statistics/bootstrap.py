"""A bootstrap of paired differences that draws seeds and, within each, identities with all their queries.

It needs no assumption about the shape of the differences and shows what the choice of test identities adds. With few
seeds it is too narrow, because a resample of five seeds never varies more than these five: the verdict of a study rests
on the t-interval over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.evaluation.intervals import CONFIDENCE, SEED, Interval

RESAMPLES: Final = 4000


class SeedGains(NamedTuple):
    """The paired differences of one seed: fractions per query and metric [Q, M], and the identity of each query."""

    gains: NDArray[np.float64]
    pids: NDArray[np.int64]


def nested_intervals(seeds: Sequence[SeedGains], *, same_people: bool) -> list[Interval]:
    """Return the 95 % percentile interval, in points, of the mean over seeds of each metric.

    same_people: the seeds have the same test identities, so a resample draws them once for all its seeds.
    """
    rng = np.random.default_rng(SEED)
    sums = [_sums(seed) for seed in seeds]
    total = np.zeros((RESAMPLES, seeds[0].gains.shape[1]))
    chosen = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    shared = _draws(rng, RESAMPLES, len(sums[0])) if same_people else None
    for slot in range(len(seeds)):
        for number, part in enumerate(sums):
            rows = np.flatnonzero(chosen[:, slot] == number)
            drawn = _draws(rng, len(rows), len(part)) if shared is None else shared[rows]
            found = drawn @ part
            total[rows] += found[:, :-1] / found[:, -1:]
    tail = (1 - CONFIDENCE) / 2
    ends = 100 * np.quantile(total / len(seeds), [tail, 1 - tail], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def _sums(seed: SeedGains) -> NDArray[np.float64]:
    """Return, for each identity, the sums of its gains and, last, the number of its queries."""
    numbers, unit = np.unique(seed.pids, return_inverse=True)
    sums = np.zeros((len(numbers), seed.gains.shape[1] + 1))
    np.add.at(sums, unit, np.column_stack([seed.gains, np.ones(len(unit))]))
    return sums


def _draws(rng: np.random.Generator, rows: int, units: int) -> NDArray[np.float64]:
    """Return how often each identity is drawn, [rows, units]."""
    places = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
    return np.bincount(places.ravel(), minlength=rows * units).reshape(rows, units).astype(float)
