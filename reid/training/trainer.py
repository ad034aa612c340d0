"""The training loop. It works on tasks, batches and steps, whatever the method and its losses.

Everything random (batches, augmentation) is a function of (seed, epoch, batch), so a resumed run only needs counters
and continues bit for bit from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from torch import nn

from data.errors import ConfigError
from data.process.environment import exact_float32, hidden_variables
from data.progress import ProgressFn, silent
from reid.config.train import FP16_PROBLEM, TrainConfig
from reid.inputs.batches import TrainingBatches, TrainingSet
from reid.tasks.base import Batch, Task, no_gather
from reid.tasks.losses import finite_values
from reid.training.blend import StartWeights
from reid.training.checkpoint import (
    CheckpointState,
    drop_best,
    load_best,
    restore_checkpoint,
    save_best,
    save_checkpoint,
)
from reid.training.device import training_device
from reid.training.distributed import gather_batch
from reid.training.metrics_log import METRICS_FILE, MetricsLog
from reid.training.optim import build_optimizer, set_rates
from reid.training.tracking import MlflowTracker

Measures = dict[str, float]
"""Name of a measure -> its value; "mAP" decides which epoch is the best."""
Validate = Callable[[Task], Measures]
"""Evaluates a task during its training. Every process must get the same measures."""


@dataclass(kw_only=True)
class TrainState(CheckpointState):
    """The state of a training run; `step` counts optimizer steps."""

    epoch: int = 0
    """Current epoch, from 0."""
    batch: int = 0
    """Finished batches of this epoch."""
    seconds: float = 0.0
    """Time spent on the steps of this epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sum over the steps of this epoch of each term and of the total ("loss")."""
    steps_in_epoch: int = 0
    """Number of steps in `sums`."""
    metrics_bytes: int = 0
    """Length of metrics.jsonl when this state was saved."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler (fp16 only)."""
    measured: Measures = field(default_factory=dict)
    """The last evaluation: "epoch" (from 0), "step" and the measures. Empty before the first."""
    best: Measures = field(default_factory=dict)
    """The evaluation with the highest mAP, the first of equals."""

    def add_step(self, values: Mapping[str, float], *, batches: int, seconds: float) -> None:
        """Count a finished step."""
        self.step += 1
        self.batch += batches
        self.steps_in_epoch += 1
        self.seconds += seconds
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def start_epoch(self) -> None:
        """Move on to the next epoch."""
        self.epoch, self.batch, self.steps_in_epoch, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.sums = {}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return an accelerator for exactly the device and precision of `config`.

    Raises:
        ConfigError: the device does not exist, or fp16 without a GPU.
    """
    cpu = training_device(config).type == "cpu"
    if config.precision == "fp16" and cpu:
        raise ConfigError(FP16_PROBLEM)
    # accelerate keeps its settings in a process-wide singleton and refuses a second precision or device: a process that
    # trains twice (tests, studies) starts from a clean one. A process group stays.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    state = PartialState(cpu=cpu)  # joins the process group, if a launcher has started several processes
    state.device = training_device(config)  # accelerate would choose the first GPU
    return Accelerator(
        cpu=cpu,
        mixed_precision=config.precision,
        # Given here, because accelerate would read these two from the environment; `fit` hides the rest.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
    )


def fit(
    task: Task,
    data: TrainingSet,
    config: TrainConfig,
    *,
    folder: Path,
    progress: ProgressFn = silent,
    validate: Validate | None = None,
    launched: bool = False,
    tracker: MlflowTracker | None = None,
) -> TrainState:
    """Train `task` in place, whatever accelerate or torch would read from the environment.

    Args:
        task: as built, with the weights before training, on the CPU; it is moved to the device of the config and back.
        data: the training set.
        config: the run.
        folder: where metrics.jsonl and checkpoints are written; a run that was killed continues from its last
            checkpoint there.
        progress: called with (finished steps, steps of the run, loss).
        validate: called after the epochs that ``config.validation`` names; it must not change the task.
        launched: whether this process is one of several that a launcher (such as torchrun) has started together.
        tracker: records the run with MLflow; only the main process uses it.

    Returns:
        The final state. The task has the weights of the last epoch, or of ``state.best`` if the config keeps the best,
        blended with those that it was given (`TrainConfig.blend`).

    Raises:
        ConfigError: the device does not exist, or the training set does not fill a batch.
        DataError: the checkpoint in `folder` is damaged or of another model.
        DivergedError: a loss term became infinite or NaN.
    """
    with hidden_variables(launched=launched), exact_float32(torch):
        folder.mkdir(parents=True, exist_ok=True)
        with _Run(task, data, config, folder, tracker) as run:
            state = run.resume()
            while state.epoch < config.schedule.epochs:
                rates = set_rates(run.optimizer, config.schedule, state.epoch)
                for group in run.batches.groups(state.epoch, state.batch):
                    values = run.step(group, state)
                    run.report(state, values, rates, progress)
                    if config.checkpoint_every and state.step % config.checkpoint_every == 0:
                        run.save(state)
                run.finish_epoch(state)
                if validate is not None and config.validation.due(state.epoch, config.schedule.epochs):
                    run.evaluate(state, validate)
            run.close(state)
            return state


class _Run:
    """The objects of one run: model, optimizer, batches, log and checkpoints."""

    def __init__(
        self, task: Task, data: TrainingSet, config: TrainConfig, folder: Path, tracker: MlflowTracker | None
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.accelerator = make_accelerator(config)
        task.to(self.accelerator.device)
        task.start_training()
        self.start = StartWeights(task, config.blend)
        self.optimizer = build_optimizer(task, config.schedule)
        self.model: nn.Module = self.accelerator.prepare_model(task)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer)
        self.batches = TrainingBatches(
            data,
            config,
            task.preprocess,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        self.gather = gather_batch if self.accelerator.num_processes > 1 else no_gather
        self.metrics = MetricsLog(
            folder / METRICS_FILE, config.tensorboard, main=self.accelerator.is_main_process, tracker=tracker
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the log of a run that did not reach its end."""
        if error is not None:
            self.metrics.close("FAILED" if isinstance(error, Exception) else "KILLED")

    # Steps --------------------------------------------------------------------------------------------

    def step(self, group: Sequence[Batch], state: TrainState) -> dict[str, float]:
        """Take one optimizer step on the mean loss of `group`; return its terms, and the total as "loss"."""
        start = time.perf_counter()
        self.model.train()
        means: dict[str, float] = {}
        for number, batch in enumerate(group, start=1):
            last = number == len(group)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                terms = self.model(batch, self.gather)  # under autocast, which `prepare_model` has added
                total = self.task.total(terms)
                where = f"step {state.step + 1} (epoch {state.epoch + 1})"
                for name, value in finite_values(total, terms, where).items():
                    means[name] = means.get(name, 0.0) + value / len(group)
                self.accelerator.backward(total / len(group))
        self.prepared.step()
        torch.clear_autocast_cache()  # inside an outer autocast it would keep the weights of before this step
        self.optimizer.zero_grad(set_to_none=True)
        state.add_step(means, batches=len(group), seconds=time.perf_counter() - start)
        return means

    def report(
        self, state: TrainState, values: Mapping[str, float], rates: Mapping[str, float], progress: ProgressFn
    ) -> None:
        """Log the last step and report progress, every `log_every` steps."""
        due = state.step % self.config.log_every == 0
        if due:
            terms = {name: value for name, value in values.items() if name != "loss"}
            self.metrics.write(
                "step", epoch=state.epoch, step=state.step, loss=values["loss"], terms=terms, lr=dict(rates)
            )
        total = self.batches.steps_per_epoch * self.config.schedule.epochs
        if due or state.step == total:
            progress(state.step, total, f"epoch {state.epoch + 1} loss {values['loss']:.3f}")

    def finish_epoch(self, state: TrainState) -> None:
        """Log the epoch's means and move `state` to the next epoch."""
        means = {name: value / state.steps_in_epoch for name, value in state.sums.items()}
        images = state.batch * self.batches.batch_size
        scaler = self.accelerator.scaler
        # fp16 skips a step whose gradients overflow, and halves the scale: the record must show it.
        scale = {} if scaler is None else {"loss_scale": scaler.get_scale()}
        self.metrics.write(
            "epoch",
            epoch=state.epoch,
            step=state.step,
            loss=means.pop("loss"),
            terms=means,
            seconds=round(state.seconds, 3),
            images_per_second=round(images / state.seconds, 1),
            **scale,
        )
        state.start_epoch()

    def evaluate(self, state: TrainState, validate: Validate) -> None:
        """Evaluate the epoch just finished, and keep its weights if they are the best so far and wanted."""
        start, epoch = time.perf_counter(), state.epoch - 1
        # The first process decides for all: the best epoch must not depend on another device's rounding.
        with self.start.blended(self.task):  # what would become the model if this epoch were kept
            measures: Measures = broadcast_object_list([validate(self.task)])[0]
        state.measured = {"epoch": epoch, "step": state.step, **measures}
        seconds = round(time.perf_counter() - start, 3)
        self.metrics.write("eval", epoch=epoch, step=state.step, **measures, seconds=seconds)
        if state.best and measures["mAP"] <= state.best["mAP"]:
            return
        state.best = state.measured
        if self.config.validation.keep == "best" and self.accelerator.is_main_process:
            save_best(self.folder, self.task, epoch)
            if not self.config.checkpoint_every:
                drop_best(self.folder, but=epoch)
        self.accelerator.wait_for_everyone()

    # Checkpoints --------------------------------------------------------------------------------------

    def resume(self) -> TrainState:
        """Load the newest checkpoint and return its state, or a new state without one."""
        state = restore_checkpoint(self.folder, self.task, self.optimizer, TrainState)
        if state.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.metrics.truncate(state.metrics_bytes)
        return state

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of the run after `state.step` steps."""
        state.metrics_bytes = self.metrics.size()
        self.metrics.flush()  # a run that continues from this checkpoint does not write these lines again
        if self.accelerator.scaler is not None:
            state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder, self.task, self.optimizer, state)
            # Only now: a run killed earlier continues from the previous checkpoint and needs its best weights.
            drop_best(self.folder, but=int(state.best.get("epoch", -1)))
        self.accelerator.wait_for_everyone()

    def close(self, state: TrainState) -> None:
        """Move the task to the CPU, load the weights to keep, blend them, and close the log."""
        self.task.end_training()
        self.task.to("cpu")
        if self.config.validation.keep == "best" and state.best:
            load_best(self.folder, self.task, int(state.best["epoch"]))
        self.start.blend(self.task)
        self.metrics.close()
