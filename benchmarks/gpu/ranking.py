"""Ranking at the size of MSMT17 with features that lie on the device."""

from __future__ import annotations

import time
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from checks.part import Check
from checks.rows import Outcome
from matrix_rate import DEVICE, wait
from numpy.typing import NDArray

from gpu.sizes import Sizes
from reid.ranking.metrics import Ranking, evaluate_ranking

DIM = 512
_BLOCK = 1024


class Data(NamedTuple):
    """Random features around the centers of their identities, so that the ranking is neither trivial nor noise."""

    query: torch.Tensor
    gallery: torch.Tensor
    query_pids: NDArray[np.int64]
    gallery_pids: NDArray[np.int64]
    query_cams: NDArray[np.int64]
    gallery_cams: NDArray[np.int64]


class RankingOnDevice:
    """The checks of the ranking."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def checks(self) -> list[Check]:
        """Return the checks."""
        return [
            Check(name="bare product on the device", want="", work=self.product, seconds=5),
            Check(
                name="ranking of features on the device",
                want="equal to the CPU's in every score and place",
                work=self.ranking,
                seconds=25,
            ),
        ]

    @cached_property
    def data(self) -> Data:
        """The features, on the CPU."""
        queries, gallery, people, cameras = self.sizes.ranking
        rng = np.random.default_rng(0)
        centers = rng.standard_normal((people, DIM), dtype=np.float32)

        def features(pids: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(centers[pids] + 2 * rng.standard_normal((len(pids), DIM), dtype=np.float32))

        query_pids, gallery_pids = rng.integers(0, people, queries), rng.integers(0, people, gallery)
        return Data(
            query=features(query_pids),
            gallery=features(gallery_pids),
            query_pids=query_pids,
            gallery_pids=gallery_pids,
            query_cams=rng.integers(0, cameras, queries),
            gallery_cams=rng.integers(0, cameras, gallery),
        )

    def product(self) -> Outcome:
        """Measure the bare matrix product, which bounds what a ranking on the device could gain."""
        query, gallery = self.data.query.to(DEVICE), self.data.gallery.to(DEVICE)
        wait()
        started = time.perf_counter()
        for start in range(0, len(query), _BLOCK):
            query[start : start + _BLOCK] @ gallery.T
        wait()
        seconds = time.perf_counter() - started
        return Outcome(got=f"{seconds:.2f} s", figures={"seconds": seconds})

    def ranking(self) -> Outcome:
        """Rank with the product's function, once from the device and once from the CPU."""
        self._rank(self.data.query[:64], self.data.gallery)  # compiles the loops
        on_device, there = self._rank(self.data.query.to(DEVICE), self.data.gallery.to(DEVICE))
        on_cpu, here = self._rank(self.data.query, self.data.gallery)
        other = differences(on_device, on_cpu)
        verdict = "equal" if not other else f"other {', '.join(other)}"
        return Outcome(
            got=f"{verdict}; mAP {on_device.mAP:.4f}; {there:.1f} s, from the CPU {here:.1f} s",
            passed=not other,
            figures={"seconds": there, "seconds_cpu": here, "mAP": on_device.mAP},
        )

    def _rank(self, query: torch.Tensor, gallery: torch.Tensor) -> tuple[Ranking, float]:
        started = time.perf_counter()
        data, count = self.data, len(query)
        found = evaluate_ranking(
            query, gallery, data.query_pids[:count], data.gallery_pids, data.query_cams[:count], data.gallery_cams
        )
        return found, time.perf_counter() - started


def differences(one: Ranking, other: Ranking) -> list[str]:
    """Return the fields in which two rankings differ; NaN equals NaN."""
    return [
        name
        for name in one.__dataclass_fields__
        if not np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
    ]
