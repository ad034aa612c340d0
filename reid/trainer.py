"""The training loop. It knows tasks, batches and steps; it names no method and no loss.

Everything random (batches, augmentation) is a function of (seed, epoch, batch), so a resumed run needs counters only,
and goes on bit for bit where the checkpoint was taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch import Tensor, nn

from data.errors import ClipScgiError, ConfigError
from data.progress import ProgressFn, silent
from reid.augment import augment, draw_plan
from reid.checkpoint import restore_checkpoint, save_checkpoint
from reid.config import TrainConfig
from reid.distributed import gather_batch
from reid.loading import load_batches
from reid.metricslog import METRICS, MetricsLog
from reid.optim import build_optimizer, set_rates
from reid.sampler import IdentitySampler
from reid.tasks import Batch, Task, alone

# Keeps augmentation apart from the sampler, which also starts from (seed, epoch).
_AUGMENT_STREAM: Final = 1


class DivergedError(ClipScgiError):
    """A loss term is not finite. The optimiser has not moved since the last finite step."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Decoded training images and what is known of each."""

    pixels: NDArray[np.uint8]
    """[M, H, W, 3]; may hold other images too, and may be a memory map."""
    positions_N: NDArray[np.int64]
    """Place of each training image in `pixels`."""
    labels_N: NDArray[np.int64]
    """Identity of each training image as a class number, 0 .. identities - 1."""
    cameras_N: NDArray[np.int64]
    """Camera of each training image as a number, 0 .. cameras - 1."""
    caption_rows_N: NDArray[np.int64] | None = None
    """Row of each training image's caption in `captions_MD`."""
    captions_MD: NDArray[np.float32] | None = None
    """Text features of the distinct captions."""


@dataclass(kw_only=True)
class TrainState:
    """Everything a resumed run needs besides tensors."""

    epoch: int = 0
    """Epoch in progress, from 0."""
    batch: int = 0
    """Batches of it that are done."""
    step: int = 0
    """Optimiser steps taken in all."""
    seconds: float = 0.0
    """Time spent on the epoch so far."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum over the epoch's steps of each term and of the total, under "loss"."""
    steps_in_epoch: int = 0
    """Steps in `sums`."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl when this state was saved."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler (fp16 only)."""


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return an accelerator for the device and precision of `config`.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if config.precision == "fp16" and cpu:
        raise ConfigError("precision fp16 needs a GPU; use bf16 or no on a processor")
    # accelerate keeps its settings in a process-wide singleton and refuses a second precision: a process that trains
    # twice (tests, studies) starts from a clean one. The process group itself stays.
    AcceleratorState._reset_state()
    return Accelerator(cpu=cpu, mixed_precision=config.precision)


def fit(
    task: Task, data: TrainingSet, config: TrainConfig, *, folder: Path, progress: ProgressFn = silent
) -> TrainState:
    """Train `task` in place.

    Args:
        task: on the CPU; it is moved.
        data: the training set.
        config: the run.
        folder: where metrics.jsonl and checkpoints live; a run killed there goes on from its last checkpoint.
        progress: called with (steps done, steps in all, loss).

    Returns:
        The final state.

    Raises:
        DivergedError: a loss term became infinite or not a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, data, config, folder)
    state = run.resume()
    while state.epoch < config.schedule.epochs:
        rates = set_rates(run.optimizer, config.schedule, state.epoch)
        for group in run.groups(state.epoch, state.batch):
            start = time.perf_counter()
            values = run.step(group, state)
            run.count(state, values, len(group), time.perf_counter() - start)
            run.report(state, values, rates, progress)
            if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                run.save(state)
        run.finish_epoch(state)
    run.close()
    return state


class _Run:
    """The objects of one run: model, optimiser, batches, records."""

    def __init__(self, task: Task, data: TrainingSet, config: TrainConfig, folder: Path) -> None:
        self.task, self.data, self.config, self.folder = task, data, config, folder
        self.accelerator = make_accelerator(config)
        task.to(self.accelerator.device)
        self.optimizer = build_optimizer(task, config.schedule)
        self.model: nn.Module = self.accelerator.prepare_model(task)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        self.sampler = IdentitySampler(
            data.labels_N,
            identities=config.batch.identities,
            images=config.batch.images,
            seed=config.seed,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        self.steps_per_epoch = math.ceil(len(self.sampler) / config.batch.accumulate)
        self.gather = gather_batch if self.accelerator.num_processes > 1 else alone
        self.captions_MD = (
            None if data.captions_MD is None else torch.from_numpy(data.captions_MD).to(self.accelerator.device)
        )
        self.metrics = MetricsLog(folder / METRICS, config.tensorboard, main=self.accelerator.is_main_process)

    # Batches ------------------------------------------------------------------------------------------

    def groups(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """Yield the batches of `epoch` from number `start` on, `accumulate` at a time: one group a step."""
        batches = self._batches(epoch, start)
        while group := list(islice(batches, self.config.batch.accumulate)):
            yield group

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        chosen = list(self.sampler.batches(epoch, start))
        pixels = load_batches(
            self.data.pixels, (self.data.positions_N[items] for items in chosen), self.accelerator.device
        )
        for number, (items, images_BCHW) in enumerate(zip(chosen, pixels, strict=True), start=start):
            yield self._batch(items, self._augmented(images_BCHW, epoch, number))

    def _augmented(self, images_BCHW: Tensor, epoch: int, number: int) -> Tensor:
        seed = np.random.SeedSequence([self.config.seed, epoch, number, _AUGMENT_STREAM]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        height, width = images_BCHW.shape[2:]
        plan = draw_plan(self.sampler.batch_size, height, width, self.config.augment, generator)
        first = self.accelerator.process_index * len(images_BCHW)
        wanted = self.task.preprocess
        return augment(
            images_BCHW,
            plan.slice(first, first + len(images_BCHW)),
            self.config.augment,
            mean=wanted.mean,
            std=wanted.std,
        )

    def _batch(self, items: NDArray[np.int64], images_BCHW: Tensor) -> Batch:
        device = self.accelerator.device
        captions = None
        if self.captions_MD is not None and self.data.caption_rows_N is not None:
            captions = self.captions_MD[torch.from_numpy(self.data.caption_rows_N[items]).to(device)]
        return Batch(
            images_BCHW=images_BCHW,
            labels_B=torch.from_numpy(self.data.labels_N[items]).to(device),
            items_B=torch.from_numpy(items).to(device),
            cameras_B=torch.from_numpy(self.data.cameras_N[items]).to(device),
            captions_BD=captions,
        )

    # Steps --------------------------------------------------------------------------------------------

    def step(self, group: Sequence[Batch], state: TrainState) -> dict[str, float]:
        """Take one optimiser step on the mean loss of `group`; return its terms and the total as "loss"."""
        self.model.train()
        sums: dict[str, float] = {}
        for number, batch in enumerate(group, start=1):
            last = number == len(group)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                terms = self.model(batch, self.gather)  # under autocast: accelerate prepared it so
                total = self.task.total(terms)
                for name, value in _values(total, terms, state).items():
                    sums[name] = sums.get(name, 0.0) + value / len(group)
                self.accelerator.backward(total / len(group))
        self.prepared.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def count(self, state: TrainState, values: Mapping[str, float], batches: int, seconds: float) -> None:
        """Add one finished step to `state`."""
        state.step += 1
        state.batch += batches
        state.steps_in_epoch += 1
        state.seconds += seconds
        for name, value in values.items():
            state.sums[name] = state.sums.get(name, 0.0) + value

    def report(
        self, state: TrainState, values: Mapping[str, float], rates: Mapping[str, float], progress: ProgressFn
    ) -> None:
        """Log a step if it is due."""
        if state.step % self.config.log_every == 0:
            terms = {name: value for name, value in values.items() if name != "loss"}
            self.metrics.write(
                {"kind": "step", "step": state.step, "epoch": state.epoch, "loss": values["loss"], "terms": terms}
                | {"lr": dict(rates)}
            )
        total = self.steps_per_epoch * self.config.schedule.epochs
        if state.step % self.config.log_every == 0 or state.step == total:
            progress(state.step, total, f"epoch {state.epoch + 1} loss {values['loss']:.3f}")

    def finish_epoch(self, state: TrainState) -> None:
        """Log the epoch's means and move `state` to the next one."""
        means = {name: value / state.steps_in_epoch for name, value in state.sums.items()}
        images = state.batch * self.sampler.batch_size
        self.metrics.write(
            {"kind": "epoch", "epoch": state.epoch, "step": state.step, "loss": means.pop("loss"), "terms": means}
            | {"seconds": round(state.seconds, 3), "images_per_second": round(images / state.seconds, 1)}
        )
        state.epoch, state.batch, state.steps_in_epoch, state.seconds = state.epoch + 1, 0, 0, 0.0
        state.sums = {}

    # Checkpoints --------------------------------------------------------------------------------------

    def resume(self) -> TrainState:
        """Return the state of the newest checkpoint, loaded, or a fresh one."""
        found = restore_checkpoint(self.folder, self.task, self.optimizer)
        state = TrainState(**found) if found else TrainState()
        if state.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.metrics.truncate(state.metrics_bytes)
        return state

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of everything as it is after `state.step` steps."""
        state.metrics_bytes = self.metrics.size()
        if self.accelerator.scaler is not None:
            state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.task, self.optimizer, asdict(state))
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the trained task on the CPU and close the records."""
        self.task.to("cpu")
        self.metrics.close()


def _values(total: Tensor, terms: Mapping[str, Tensor], state: TrainState) -> dict[str, float]:
    """Return the total as "loss" and the terms as numbers (one transfer), or stop if one is not finite."""
    numbers = torch.stack([total.detach().float(), *(term.detach().float() for term in terms.values())]).tolist()
    values = dict(zip(["loss", *terms], numbers, strict=True))
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"training stopped before step {state.step + 1} (epoch {state.epoch + 1}): {', '.join(bad)}. Weights are "
            "as after the last finite step. Lower the learning rates, lengthen the warm-up, or train without fp16"
        )
    return values
