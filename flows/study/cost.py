"""Estimate of the cost of a study: the time of a step, measured under the current load, times the steps of all runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from data.artifacts.fingerprint import canonical_json
from data.device import CPU, resolve_device
from data.stages.images import IndexedImages
from flows.study.run import Run
from reid.config.train import TrainConfig
from reid.inputs.image_rows import read_rows

_REPETITIONS: Final = 3  # after one that warms up; the shortest counts


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
    speeds: dict[str, _Speed] = {}
    sizes: dict[str, NDArray[np.int64]] = {}
    steps, seconds = 0, 0.0
    distinct = {_training_key(run): run for run in runs}
    for run in distinct.values():
        labels = sizes.setdefault(run.inputs.run.images.ref.fingerprint, _labels(run.inputs.run.images))
        speed = speeds.setdefault(run.train.method, _Speed.measured(run.train, len(np.unique(labels))))
        taken = training_steps(run.train, labels)
        steps += taken
        seconds += taken * speed.step + _prompt_steps(run.train, len(labels)) * speed.prompt_step
    return Cost(runs=len(distinct), steps=steps, seconds=seconds)


def _training_key(run: Run) -> tuple[str, str, str]:
    return run.inputs.run.images.ref.fingerprint, run.variant.captions, canonical_json(run.train.identity())


def training_steps(config: TrainConfig, labels: NDArray[np.int64]) -> int:
    """Return the number of optimizer steps of a training on images of identities `labels`, [N]."""
    from reid.inputs.sampler import IdentitySampler

    batch = config.batch
    sampler = IdentitySampler(labels, identities=batch.identities, images=batch.images, seed=config.seed)
    return config.schedule.epochs * -(-len(sampler) // batch.accumulate)


def _prompt_steps(config: TrainConfig, images: int) -> int:
    return config.prompts.epochs * -(-images // config.prompts.batch) if config.method == "clip_reid" else 0


def _labels(images: IndexedImages) -> NDArray[np.int64]:
    rows = read_rows(images)
    return rows.pid[rows.of_split("train")]


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Seconds per training step, and per step of CLIP-ReID's first stage (0 for other methods)."""

    step: float
    prompt_step: float

    @classmethod
    def measured(cls, config: TrainConfig, identities: int) -> _Speed:
        prompt = _shortest(_prompt_step(config, identities)) if config.method == "clip_reid" else 0.0
        return cls(step=_shortest(_step(config, identities)), prompt_step=prompt)


def _shortest(step: Callable[[], None]) -> float:
    seconds = []
    for _ in range(_REPETITIONS + 1):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _device(config: TrainConfig) -> str:
    import torch

    return resolve_device(config.device, torch.cuda, "train.device")


def _step(config: TrainConfig, identities: int) -> Callable[[], None]:
    """Return a function that takes one optimizer step of the method on random pixels."""
    import torch

    from reid.tasks.base import Batch
    from reid.tasks.build import build_task
    from reid.training.optim import build_optimizer

    device, size = _device(config), config.batch.identities * config.batch.images
    task = build_task(config, identities=identities, cameras=[0]).to(device).train()
    optimizer = build_optimizer(task, config.schedule)
    batch = Batch(
        images_BCHW=torch.randn(size, 3, config.backbone.height, config.backbone.width, device=device),
        labels_B=torch.arange(size, device=device) // config.batch.images,
        items_B=torch.arange(size, device=device),
        cameras_B=torch.zeros(size, dtype=torch.long, device=device),
        captions_BD=torch.randn(size, task.backbone.joint_width, device=device),
    )

    def step() -> None:
        for _ in range(config.batch.accumulate):
            task.total(task(batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)

    return step


def _prompt_step(config: TrainConfig, identities: int) -> Callable[[], None]:
    """Return a function that takes one step of CLIP-ReID's first stage on random features."""
    import torch

    from reid.models.backbone import build_backbone
    from reid.training.prompt_learning import PromptLearner, prompt_terms

    device, size = _device(config), config.prompts.batch
    backbone = build_backbone(config.backbone, seed=config.seed).to(device).eval()
    backbone.freeze_text()
    learner = PromptLearner(backbone, identities, config.prompts.words).to(device)
    features = torch.randn(size, backbone.joint_width, device=device)
    labels = torch.arange(size, device=device) % identities

    def step() -> None:
        terms = prompt_terms(features, labels, backbone, learner, config.prompts.temperature)
        torch.stack([*terms.values()]).sum().backward()
        learner.zero_grad(set_to_none=True)
        _wait(device)

    return step


def _wait(device: str) -> None:
    """Wait until a GPU has done its queued work, so that the clock measures it."""
    import torch

    if device != CPU:
        torch.cuda.synchronize(device)
