"""Estimate of the cost of a study: the time of a step, measured under the current load, times the steps of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.artifacts.fingerprint import canonical_json
from data.stages.images import IndexedImages
from flows.costs.steps import StepTime, full_steps, prompt_steps, training_steps
from flows.study.run import Run
from reid.inputs.image_rows import read_rows


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of training alone, without drawing, captioning and evaluation. steps: sum over all `runs`."""

    runs: int
    steps: int
    seconds: float


def estimate(runs: Sequence[Run]) -> Cost:
    """Return the cost of training `runs` on this machine under its current load; equal trainings count once.

    Take a few steps of each method on random pixels, including CLIP-ReID's first stage. Raise WeightsError or
    ConfigError if a task cannot be built.
    """
    speeds: dict[str, StepTime] = {}
    sizes: dict[str, NDArray[np.int64]] = {}
    steps, seconds = 0, 0.0
    distinct = {_training_key(run): run for run in runs}
    for run in distinct.values():
        labels = sizes.setdefault(run.inputs.run.images.ref.fingerprint, _labels(run.inputs.run.images))
        speed = speeds.setdefault(run.train.method, full_steps(run.train, len(np.unique(labels))))
        taken = training_steps(run.train, labels)
        steps += taken
        seconds += taken * speed.step + prompt_steps(run.train, len(labels)) * speed.prompt_step
    return Cost(runs=len(distinct), steps=steps, seconds=seconds)


def _training_key(run: Run) -> tuple[str, str, str]:
    return run.inputs.run.images.ref.fingerprint, run.variant.captions, canonical_json(run.train.identity())


def _labels(images: IndexedImages) -> NDArray[np.int64]:
    rows = read_rows(images)
    return rows.pid[rows.of_split("train")]
