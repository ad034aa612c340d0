"""What a run will cost: images to caption, time where it was measured, bytes on the disk, and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from captioning.model_size import model_on_disk
from captioning.reading import Pending
from captioning.stage.probe import SECONDS, measure, uncaptioned
from data.artifacts.stages import StageName
from data.device import CPU, cuda_devices
from data.errors import ClipScgiError, RetryableError, counted
from flows.costs.steps import brief_steps, prompt_steps, training_steps
from flows.preflight.devices import device_of
from flows.preflight.disk import free_bytes, sizes
from flows.preflight.inspection import Inspection
from flows.preflight.machine import Load, machine_load
from flows.preflight.memory import Need, captioner_size, memory_needs
from flows.preflight.plan import Plan
from flows.terminal import size
from reid.evaluation.sentences.source import NoSentences, find_sentences
from reid.inputs.training_rows import held_out_identities

COSTLY: Final[tuple[StageName, ...]] = ("caption", "train", "evaluate")
"""The stages whose cost is shown; index, audit and report take seconds to minutes."""
_STAGE_OF: Final[Mapping[str, StageName]] = {
    "captions": "caption",
    "pixels": "train",
    "caption features": "train",
    "model and checkpoints": "train",
    "embeddings": "evaluate",
    "rankings": "evaluate",
}


class Duration(NamedTuple):
    """The time of a stage. seconds: None if unknown. basis: how it was measured, or why it was not."""

    seconds: float | None
    basis: str


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of one stage.

    is_cached: it has an artifact and costs nothing. work: what it has to do. n_bytes: that it writes; None if unknown.
    """

    stage: StageName
    is_cached: bool
    work: str
    duration: Duration
    n_bytes: int | None
    memory: Need | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a run.

    to_caption: distinct images without a caption; None if unknown. free: bytes of the disk. load: of the machine before
    anything was measured; None if nothing was.
    """

    stages: list[StageCost]
    to_caption: int | None
    free: int
    load: Load | None = None

    @property
    def seconds(self) -> float:
        """Sum of the measured times."""
        return sum(stage.duration.seconds or 0.0 for stage in self.stages)

    @property
    def unmeasured(self) -> list[str]:
        """The stages that will run for an unknown time."""
        return [stage.stage for stage in self.stages if stage.duration.seconds is None]

    @property
    def n_bytes(self) -> int | None:
        """Bytes that the run will write at most; None if unknown."""
        known = [stage.n_bytes for stage in self.stages if stage.n_bytes is not None]
        return sum(known) if len(known) == len(self.stages) else None


class _Images(NamedTuple):
    """Images to caption. pending: distinct ones without a caption, None if unknown. total: of all distinct images."""

    pending: Sequence[Pending] | None
    total: int


def costs_of(found: Inspection, *, probe: bool) -> Costs:
    """Return the costs of an inspected run.

    probe: measure the speed of captioning and training, about ten seconds each, unless there is a problem. Captions of
    the probe are not stored.
    """
    plan, images = found.plan, _images(found.plan)
    needs, written = {need.stage: need for need in memory_needs(plan)}, sizes(plan)
    load = machine_load()
    refusal = "not measured" if not probe else "not measured: fix the problems first" if found.problems else ""
    stages = [
        StageCost(
            stage=stage,
            is_cached=stage not in plan.stages,
            work=_work(stage, plan, images),
            duration=_duration(stage, plan, images, refusal),
            n_bytes=_bytes(stage, plan, written),
            memory=needs.get(stage),
        )
        for stage in COSTLY
        if stage in found.stages
    ]
    pending = None if images is None else images.pending
    to_caption = None if pending is None else len(pending)
    is_measured = any(stage.duration.seconds for stage in stages)
    return Costs(
        stages=stages,
        to_caption=to_caption,
        free=free_bytes(plan.run.store.root),
        load=load if is_measured else None,
    )


def _bytes(stage: StageName, plan: Plan, written: Mapping[str, int]) -> int | None:
    if stage in plan.stages and not plan.has_rows:
        return None
    return sum(n_bytes for name, n_bytes in written.items() if _STAGE_OF[name] == stage)


def _images(plan: Plan) -> _Images | None:
    """Return the images to caption, or None if the dataset is not indexed."""
    if not plan.is_indexed:
        return None
    total = len(np.unique(plan.run.images.sha256()))
    if "caption" not in plan.stages:
        return _Images([], total)
    try:
        return _Images(uncaptioned(plan.run, plan.caption), total)
    except ClipScgiError:
        return _Images(None, total)  # the captioner is unusable, which is a problem of its own


def _work(stage: StageName, plan: Plan, images: _Images | None) -> str:
    if stage not in plan.stages:
        return ""
    if images is None and not plan.has_rows:
        return "unknown until the images can be read"
    counts = {split: len(plan.rows.of(split).pid) for split in ("train", "query", "gallery")}
    if stage == "caption":
        return _captioning_work(plan, images)
    if stage == "train":
        return f"{counted(counts['train'], 'image')}, {counted(plan.train.schedule.epochs, 'epoch')}"
    ranked = f"{counted(counts['query'], 'query')}, {counted(counts['gallery'], 'gallery image')}"
    return ", ".join(filter(None, [ranked, _sentences(plan)]))


def _sentences(plan: Plan) -> str:
    """Return how many sentences of the dataset are ranked, in words; "" if there are none or the images are unknown."""
    if not plan.is_indexed:
        return ""
    found = find_sentences(plan.run.images, None, plan.evaluate)
    return "" if isinstance(found, NoSentences) else counted(len(found), "sentence")


def _captioning_work(plan: Plan, images: _Images | None) -> str:
    if plan.caption.engine == "imported":
        return "no model: captions are imported"
    if plan.caption.engine == "dataset":
        return "no model: captions are sentences of the dataset"
    if images is None or images.pending is None:
        return counted(len(plan.rows.pid) if images is None else images.total, "image")
    known = images.total - len(images.pending)
    return counted(len(images.pending), "image") + (f", {known:,} already captioned" if known else "")


def _duration(stage: StageName, plan: Plan, images: _Images | None, refusal: str) -> Duration:
    """Return the time of a stage. refusal: why nothing may be measured, or ""."""
    if stage not in plan.stages:
        return Duration(0.0, "cached")
    pending = None if images is None else images.pending
    if stage == "caption" and pending is not None and not pending:
        return Duration(0.0, "all captions exist")
    if refusal or pending is None:
        return Duration(None, refusal or "not measured")
    if stage == "caption":
        return _explained(lambda: _captioning(plan, pending))
    if stage == "train":
        return _explained(lambda: _training(plan))
    return Duration(None, "not measured")


def _explained(measured: Callable[[], Duration]) -> Duration:
    """Return a time, or why it cannot be measured."""
    try:
        return measured()
    except (ClipScgiError, RetryableError) as error:
        return Duration(None, f"not measured: {error}")
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return Duration(None, "not measured: out of memory")


def _captioning(plan: Plan, pending: Sequence[Pending]) -> Duration:
    """Caption for ten seconds."""
    if plan.caption.engine == "transformers" and model_on_disk(plan.caption) is None:
        found = captioner_size(plan)
        told = "" if found is None else f" (about {size(found.weights)})"
        return Duration(None, f"not measured: caption.model={plan.caption.model} is not downloaded yet{told}")
    speed = measure(pending, plan.run.images.root, plan.caption)
    workers = _parallel(plan)
    basis = f"{speed.per_second:.3g} images/s in batches of {speed.batch}"
    return Duration(len(pending) / speed.per_second / workers, basis + (f", {workers} workers" if workers > 1 else ""))


def _parallel(plan: Plan) -> int:
    """Return how many captioning workers have a GPU of their own."""
    device = device_of(plan, plan.caption.local_device)
    return 1 if device in (None, CPU) else min(max(plan.scale.caption_workers, 1), cuda_devices(plan.cuda))


def _training(plan: Plan) -> Duration:
    """Train for ten seconds on random pixels."""
    config, labels = plan.train, plan.rows.of("train").pid
    if config.validation.holds_out:
        labels = labels[~np.isin(labels, held_out_identities(labels, config))]
    identities = len(np.unique(labels))
    measured = brief_steps(config, identities, processes=plan.scale.trainers, seconds=SECONDS)
    steps, first = training_steps(config, labels), prompt_steps(config, len(labels))
    basis = f"{measured.step:.3g} s per step of {config.batch.identities * config.batch.images} images"
    if measured.is_scaled:
        basis += f", from one of {measured.images}"
    return Duration(steps * measured.step + first * measured.prompt_step, basis)
