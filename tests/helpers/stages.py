"""Stages called like functions, and artifacts written by hand: what most tests need of a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioning.audit.stage import AuditConfig, AuditStage
from captioning.config import CaptionConfig
from captioning.stage.stage import Captioned, CaptionStage
from data.artifacts.store import ArtifactRef, ArtifactStore, Made, Produced
from data.files import write_json
from data.progress import ProgressFn, silent
from data.stages.images import IndexedImages
from data.stages.stage import RunContext, Stage
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.stage import EvaluateStage
from reid.inputs.pixel_cache import PixelStage
from reid.training.stage import TrainStage

DESCRIPTION = {"name": "drawn", "reader": "manifest", "dataset_hash": "0" * 32, "notices": []}
"""dataset.json of an index artifact that was written by hand."""


@dataclass(frozen=True, kw_only=True)
class HandMade(Stage):
    """A stage of any name that a test gives the ingredients and the work of."""

    name: str  # type: ignore[misc]
    made_of: Mapping[str, Any]
    work: Callable[[Path], object] = field(repr=False)
    complete: Callable[[Path], bool] = field(default=lambda _: True, repr=False)
    contents: Callable[[Path], Mapping[str, str]] = field(default=lambda _: {}, repr=False)

    def ingredients(self, run: RunContext) -> Mapping[str, Any]:
        """Return what the test said."""
        return self.made_of

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Do the work."""
        self.work(folder)
        return Produced(complete=self.complete(folder), contents=self.contents(folder))


def make_artifact(
    store: ArtifactStore, stage: str, ingredients: Mapping[str, Any], work: Callable[[Path], object], **options: Any
) -> Made:
    """Return the artifact of `stage` for `ingredients`, written by `work` unless it is there."""
    made = HandMade(name=stage, made_of=ingredients, work=work, **options)
    return made.make(RunContext(store=store))


def run_on(
    store: ArtifactStore, images: ArtifactRef, images_root: Path | str = "", progress: ProgressFn = silent
) -> RunContext:
    """Return the context of a run on the images of an index artifact."""
    return RunContext(store=store, progress=progress, indexed=IndexedImages(ref=images, root=Path(images_root)))


def describe_by_hand(folder: Path, **fields: Any) -> None:
    """Write dataset.json into an index artifact that is made by hand."""
    write_json(folder / "dataset.json", DESCRIPTION | fields)


@dataclass(frozen=True, kw_only=True)
class CaptionOutcome:
    """What the caption stage did; all counts are 0 where the artifact was found."""

    made: Made
    generated: int
    reused: int
    failed: int

    @property
    def note(self) -> str:
        """What the stage says of itself."""
        return self.made.produced.note


def caption(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    images_root: Path,
    config: CaptionConfig,
    progress: ProgressFn = silent,
) -> CaptionOutcome:
    """Run the caption stage."""
    made = CaptionStage(config=config).make(run_on(store, images, images_root, progress))
    done = made.produced if isinstance(made.produced, Captioned) else Captioned()
    return CaptionOutcome(made=made, generated=done.generated, reused=done.reused, failed=done.failed)


def audit(
    store: ArtifactStore,
    *,
    captions: ArtifactRef,
    config: AuditConfig,
    images: ArtifactRef | None = None,
    images_root: Path = Path("/nowhere"),
) -> Made:
    """Run the audit stage; by default on an index that has a name and no images."""
    index = images or make_artifact(store, "index", DESCRIPTION, describe_by_hand).ref
    return AuditStage(captions=captions, config=config).make(run_on(store, index, images_root))


def pixels(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    images_root: Path,
    height: int,
    width: int,
    workers: int | None = None,
    progress: ProgressFn = silent,
) -> Made:
    """Run the pixel stage."""
    stage = PixelStage(height=height, width=width, workers=workers)
    return stage.make(run_on(store, images, images_root, progress))


def train(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    captions: ArtifactRef | None,
    images_root: Path,
    config: TrainConfig,
    progress: ProgressFn = silent,
) -> Made:
    """Run the train stage."""
    return TrainStage(captions=captions, config=config).make(run_on(store, images, images_root, progress))


def evaluate(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    model: ArtifactRef,
    images_root: Path,
    config: EvaluateConfig,
    progress: ProgressFn = silent,
) -> Made:
    """Run the evaluate stage."""
    return EvaluateStage(model=model, config=config).make(run_on(store, images, images_root, progress))
