"""Time of a training step, measured on random pixels under the current load, and the number of steps of a training."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.device import CPU, resolve_device
from reid.config.train import TrainConfig

_REPETITIONS: Final = 3  # after one that warms up; the shortest counts


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds per optimizer step, and per step of CLIP-ReID's first stage (0 for other methods).

    images: images of the measured step. is_scaled: the step was measured with fewer images than a full one has.
    """

    step: float
    prompt_step: float
    images: int
    is_scaled: bool = False


def training_steps(config: TrainConfig, labels: NDArray[np.int64]) -> int:
    """Return the number of optimizer steps of a training on images of identities `labels`, [N]."""
    from reid.inputs.sampler import IdentitySampler

    batch = config.batch
    sampler = IdentitySampler(labels, identities=batch.identities, images=batch.images, seed=config.seed)
    return config.schedule.epochs * -(-len(sampler) // batch.accumulate)


def prompt_steps(config: TrainConfig, images: int) -> int:
    """Return the number of steps of CLIP-ReID's first stage on `images` images; 0 for other methods."""
    return config.prompts.epochs * -(-images // config.prompts.batch) if config.method == "clip_reid" else 0


def full_steps(config: TrainConfig, identities: int) -> StepTime:
    """Measure steps of full batches. Raise WeightsError or ConfigError if a task cannot be built."""
    size = config.batch.identities * config.batch.images
    step = _step(config, identities)
    return StepTime(
        step=_shortest(partial(step, size)), prompt_step=_prompt_time(config, identities, _REPETITIONS), images=size
    )


def brief_steps(config: TrainConfig, identities: int, *, processes: int, seconds: float) -> StepTime:
    """Measure steps for about `seconds`: of growing batches, up to the full one of each of `processes`.

    If a full batch takes too long, its time is that of the largest measured batch in proportion to its images.
    """
    full = max(1, config.batch.identities // processes) * config.batch.images
    step, deadline = _step(config, identities), time.perf_counter() + seconds
    size, taken = 0, 0.0
    while size < full:
        bigger = min(max(2, 2 * size), full)
        # Each size runs twice: the first time warms up.
        if size and time.perf_counter() + 2 * taken * bigger / size > deadline:
            break
        size = bigger
        taken = _shortest(partial(step, size), 1)
    prompt = _prompt_time(config, identities, 1)
    return StepTime(step=taken * full / size, prompt_step=prompt, images=size, is_scaled=size < full)


def _shortest(step: Callable[[], None], repetitions: int = _REPETITIONS) -> float:
    return min([_seconds(step) for _ in range(repetitions + 1)][1:])


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _device(config: TrainConfig) -> str:
    import torch

    return resolve_device(config.device, torch.cuda, "train.device")


def _autocast(config: TrainConfig, device: str) -> AbstractContextManager[Any]:
    """Return the context of the precision of `config`, as the trainer uses it."""
    import torch

    if config.precision == "no":
        return nullcontext()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float16
    return torch.autocast(torch.device(device).type, dtype)


def _step(config: TrainConfig, identities: int) -> Callable[[int], None]:
    """Return a function that takes one optimizer step of the method on random pixels of so many images."""
    import torch

    from reid.tasks.base import Batch
    from reid.tasks.build import build_task
    from reid.training.optim import build_optimizer

    device = _device(config)
    task = build_task(config, identities=identities, cameras=[0]).to(device).train()
    task.start_training()
    optimizer = build_optimizer(task, config.schedule)

    def step(size: int) -> None:
        batch = Batch(
            images_BCHW=torch.randn(size, 3, config.backbone.height, config.backbone.width, device=device),
            labels_B=torch.arange(size, device=device) // config.batch.images,
            items_B=torch.arange(size, device=device),
            cameras_B=torch.zeros(size, dtype=torch.long, device=device),
            captions_BD=torch.randn(size, task.backbone.joint_width, device=device),
        )
        for _ in range(config.batch.accumulate):
            with _autocast(config, device):
                loss = task.total(task(batch))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)

    return step


def _prompt_time(config: TrainConfig, identities: int, repetitions: int) -> float:
    if config.method != "clip_reid":
        return 0.0
    return _shortest(_prompt_step(config, identities), repetitions)


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
