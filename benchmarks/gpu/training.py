"""Training of the three methods through the product's trainer: speed, losses against the CPU's, overflow in fp16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, get_args
from unittest.mock import patch

import torch
from accelerate import Accelerator
from bench_training import Backbone, images_per_second, operations, random_people, speed_config
from checks.part import Check
from checks.rows import NotRun, Outcome, at_least, at_most
from matrix_rate import ON_GPU, matrix_rate

from data.device import CPU
from gpu.sizes import Sizes
from reid.config.backbone import BackboneConfig
from reid.config.train import Method, TrainConfig
from reid.tasks.base import Task
from reid.tasks.build import build_task
from reid.training import trainer
from reid.training.metrics_log import METRICS_FILE

SHARE, PEER, LOSS = 0.4, 3.0, 0.01
"""Wanted share of the matrix rate, ratio to CLIP-ReID's own loop, and largest difference of a loss."""
METHODS: Final[tuple[Method, ...]] = get_args(Method)
PRECISIONS: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST_SCALE: Final = 65_536.0
"""Scale that torch's GradScaler starts with."""
_LOW_SCALE: Final = 256.0
_OVERFLOWS_AT: Final = 3
_OVERFLOW_STEPS: Final = 6
_TOO_MUCH: Final = 1e34
"""Times this, a loss is still finite in float32, and its gradients, scaled for fp16, are not."""


class Training:
    """The checks of the training."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._speeds: dict[str, float] = {}
        self._exact: dict[tuple[Method, Backbone], list[float]] = {}

    def checks(self) -> list[Check]:
        """Return the checks: the speeds first, because the losses need minutes of a slow CPU."""
        each = [(m, b, p) for b in self.sizes.backbones for m in METHODS for p in PRECISIONS]
        return [
            Check(name="matrix rates", want="", work=self.rates, seconds=5),
            *(
                Check(
                    name=f"{method} {backbone} {precision}",
                    want=f">= {SHARE:.0%} of the matrix rate",
                    work=partial(self.speed, method, backbone, precision),
                    seconds=8,
                )
                for method, backbone, precision in each
            ),
            Check(
                name="fp16 overflow",
                want="step skipped, scale halved, training goes on",
                work=self.overflow,
                seconds=12,
            ),
            Check(
                name="clip_reid against its public loop",
                want=f">= {PEER:g} x its speed",
                work=self.peer,
                seconds=40,
            ),
            *(
                Check(
                    name=f"losses of {method} {backbone} {precision}",
                    want=f"mean of {self.sizes.parity[2]} steps within {LOSS:.0%} of float32 on the CPU",
                    work=partial(self.losses, method, backbone, precision),
                    seconds=12,
                )
                for method, backbone, precision in each
            ),
        ]

    # Shared by the checks ------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """A folder for pixels and runs that is deleted at the end of the process."""
        self._held = TemporaryDirectory()
        return Path(self._held.name)

    @cached_property
    def matrix_rates(self) -> dict[str, float]:
        """Operations per second of a matrix product, by precision."""
        return {precision: matrix_rate(dtype, side=self.sizes.side) for precision, dtype in PRECISIONS.items()}

    def config(
        self, method: Method, backbone: Backbone, precision: str, *, identities: int | None = None, images: int = 0
    ) -> TrainConfig:
        """Return the settings of a run; the batch is the timed one unless given."""
        sizes = self.sizes
        shape = BackboneConfig(name=backbone, weights="random", height=sizes.height, width=sizes.width)
        here = precision if ON_GPU or precision != "fp16" else "bf16"
        return speed_config(method, here, shape, identities or sizes.identities, images or sizes.images)

    # Checks -------------------------------------------------------------------------------------------

    def rates(self) -> Outcome:
        """Measure the matrix rates."""
        got = ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in self.matrix_rates.items())
        return Outcome(got=got, figures=self.matrix_rates)

    def speed(self, method: Method, backbone: Backbone, precision: str) -> Outcome:
        """Measure the second of two epochs, loader included."""
        config = self.config(method, backbone, precision)
        data = random_people(self.folder, config, self.sizes.steps)
        need = operations(config, data)
        name = f"{method} {backbone} {precision}"
        with scaled(precision):
            found = self._speeds[name] = images_per_second(config, data, self.folder / name)
        share = found * need / self.matrix_rates[precision]
        return Outcome(
            got=f"{found:.1f} images/s, {share:.0%} of the matrix rate, {need / 1e9:.1f} GFLOP per image",
            passed=at_least(share, SHARE) if self.sizes.judged else None,
            figures={"images_per_second": found, "share": share, "operations": need},
        )

    def peer(self) -> Outcome:
        """Train CLIP-ReID's own second stage on as many images, in fp16, the only precision of its loop."""
        sizes = self.sizes
        if sizes.peer is None:
            raise NotRun("needs a checkout of Syliz517/CLIP-ReID: make gpu PEER=FOLDER")
        from clip_reid_loop import peer_images_per_second

        theirs = peer_images_per_second(
            sizes.peer, identities=sizes.identities, images=sizes.images, steps=2 * sizes.steps
        )
        ours = self._speeds[f"clip_reid {sizes.backbones[0]} fp16"]
        return Outcome(
            got=f"{ours / theirs:.2f} x: {ours:.0f} and {theirs:.0f} images/s",
            passed=at_least(ours / theirs, PEER) if sizes.judged else None,
            figures={"ratio": ours / theirs, "images_per_second": ours, "images_per_second_peer": theirs},
        )

    def losses(self, method: Method, backbone: Backbone, precision: str) -> Outcome:
        """Compare the mean loss with that of the same run in float32 on the CPU.

        A single step may differ more: rounding to half precision changes which pairs are the hardest of a batch. The
        gradient scaler starts low, because a skipped step, which overflow at the usual start causes, is another run.
        """
        exact = self._exact.get((method, backbone)) or self._losses(method, backbone, "no", device=CPU)
        self._exact[method, backbone] = exact
        found = self._losses(method, backbone, precision, device="auto")
        apart = abs(sum(found) / sum(exact) - 1)
        worst = max(abs(one / other - 1) for one, other in zip(found, exact, strict=True))
        return Outcome(
            got=f"mean {apart:.2%} apart, a single step at most {worst:.2%}",
            passed=at_most(apart, LOSS),
            figures={"difference": apart, "difference_of_a_step": worst, "first": found[0], "last": found[-1]},
        )

    def _losses(self, method: Method, backbone: Backbone, precision: str, *, device: str) -> list[float]:
        identities, images, steps = self.sizes.parity
        config = self.config(method, backbone, precision, identities=identities, images=images)
        once = config.schedule.model_copy(update={"epochs": 1})
        config = config.model_copy(update={"device": device, "schedule": once})
        folder = self.folder / f"{method}-{backbone}-{precision}-{device}"
        task = build_task(config, identities=identities)
        with scaled(precision, scale=_LOW_SCALE):
            trainer.fit(task, random_people(self.folder, config, steps), config, folder=folder)
        return losses_of(folder)

    def overflow(self) -> Outcome:
        """Make the gradients of one step infinite, and look at the weights and the scale after each."""
        config = self.config("clip_scgi", self.sizes.backbones[0], "fp16")
        once = config.schedule.model_copy(update={"epochs": 1})
        config = config.model_copy(update={"schedule": once, "checkpoint_every": _OVERFLOW_STEPS})
        data = random_people(self.folder, config, _OVERFLOW_STEPS)
        run = OverflowingRun(build_task(config, identities=config.batch.identities))
        with scaled("fp16"):
            state = trainer.fit(run.task, data, config, folder=self.folder / "overflow", progress=run.after_step)
        scale = float(state.scaler["scale"])
        return Outcome(
            got=f"steps that changed the weights: {run.changed}; scale {run.first_scale:g} to {scale:g}",
            passed=run.skipped_only(_OVERFLOWS_AT) and scale < run.first_scale,
            figures={"scale": scale, "first_scale": run.first_scale},
        )


@dataclass
class OverflowingRun:
    """A task whose total is huge in one step, and a record of the steps that changed its weights."""

    task: Task
    changed: list[int] = field(default_factory=list)
    first_scale: float = _FIRST_SCALE

    def __post_init__(self) -> None:
        """Replace the total of the task."""
        total, calls = self.task.total, iter(range(1, _OVERFLOW_STEPS + 1))
        self.task.total = (  # type: ignore[method-assign]
            lambda terms: total(terms) * (_TOO_MUCH if next(calls) == _OVERFLOWS_AT else 1.0)
        )
        self._before = self._weights()

    def after_step(self, done: int, total: int, note: str) -> None:
        """Note whether step number `done` has changed a weight."""
        now = self._weights()
        if not torch.equal(now, self._before):
            self.changed.append(done)
        self._before = now

    def _weights(self) -> torch.Tensor:
        _, weight = next(self.task.backbone.image_parameters())
        return weight.detach().cpu().clone()

    def skipped_only(self, step: int) -> bool:
        """Return True if `step` was skipped and training went on after it; fp16 may skip the first steps too."""
        return step not in self.changed and set(range(step + 1, _OVERFLOW_STEPS + 1)) <= set(self.changed)


def losses_of(folder: Path) -> list[float]:
    """Return the loss of every step of a run."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    return [float(row["loss"]) for row in rows if row["kind"] == "step"]


@contextmanager
def scaled(precision: str, *, scale: float | None = None) -> Iterator[None]:
    """Start the gradient scaler of fp16 at `scale`, if one is given.

    Without a GPU, this also gives the trainer a scaler; there `Training.config` sets bf16.
    """
    if precision != "fp16" or (ON_GPU and scale is None):
        yield
        return
    make = trainer.make_accelerator

    def with_scaler(config: TrainConfig) -> Accelerator:
        accelerator = make(config)
        if accelerator.scaler is not None or not ON_GPU:
            accelerator.scaler = torch.amp.GradScaler(accelerator.device.type, init_scale=scale or _FIRST_SCALE)
        return accelerator

    with patch.object(trainer, "make_accelerator", with_scaler):
        yield
