"""Estimate of the cost of a study: the time of a step, measured under the current load, times the steps of all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.stages.images import IndexedImages
from flows.costs.steps import StepTime, full_steps, prompt_steps, training_steps
from flows.study.run import Run
from reid.inputs.image_rows import read_rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of training alone, without drawing, captioning and evaluation.

    runs: distinct trainings. steps: of all runs, by world.
    """

    runs: int
    steps: Mapping[str, int]
    seconds: float

    @property
    def all_steps(self) -> int:
        """The number of steps in all worlds."""
        return sum(self.steps.values())


def estimate(runs: Sequence[Run]) -> Cost:
    """Return the cost of training `runs` on this machine under its current load; equal trainings count once.

    Take a few steps of each method on random pixels, including CLIP-ReID's first stage. Raise WeightsError or
    ConfigError if a task cannot be built.
    """
    speeds: dict[str, StepTime] = {}
    sizes: dict[str, NDArray[np.int64]] = {}
    steps: Counter[str] = Counter()
    seconds = 0.0
    distinct = {run.turn: run for run in runs}
    for run in distinct.values():
        images = run.inputs.run.images
        if images.ref.fingerprint not in sizes:
            sizes[images.ref.fingerprint] = _labels(images)
        labels, method = sizes[images.ref.fingerprint], run.train.method
        if method not in speeds:
            speeds[method] = full_steps(run.train, len(np.unique(labels)))
        taken = training_steps(run.train, labels)
        steps[run.world] += taken
        seconds += taken * speeds[method].step + prompt_steps(run.train, len(labels)) * speeds[method].prompt_step
    return Cost(runs=len(distinct), steps=dict(steps), seconds=seconds)


def _labels(images: IndexedImages) -> NDArray[np.int64]:
    rows = read_rows(images)
    return rows.pid[rows.of_split("train")]
