"""The inputs of all runs of one seed: the images and every kind of captions, made only if not found."""

from __future__ import annotations

from dataclasses import dataclass

from captioning.config import CaptionConfig
from captioning.corrections.stage import find_captions, make_captions
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.datasets import DatasetConfig
from data.index.stage import index
from data.progress import ProgressFn
from data.stages.stage import RunContext
from flows.recipes import Recipe
from flows.study.controls import TRUTH, ShuffleConfig, ShuffleStage, TrueStage
from flows.study.plan import Captions
from flows.worlds import ensure_dataset


@dataclass(frozen=True, kw_only=True)
class SeedInputs:
    """The dataset of one seed, as `data` describes it, and its captions. seed: of the shuffled captions."""

    run: RunContext
    seed: int
    config: CaptionConfig
    data: DatasetConfig

    @property
    def has_truth(self) -> bool:
        """True if the true attributes of the images are known."""
        return (self.run.images.root / TRUTH).is_file()

    def find(self, kind: Captions) -> ArtifactRef | None:
        """Return the captions of `kind` if they exist; never make them."""
        if kind in ("shuffled", "scattered"):
            captions = self.find("captioner")
            return None if captions is None else self._shuffled(kind, captions).find(self.run)
        if kind == "captioner":
            return find_captions(self.run, self.config)
        return TrueStage().find(self.run) if kind == "true" else None

    def make(self, kind: Captions, progress: ProgressFn) -> ArtifactRef | None:
        """Return the captions of `kind`; make them if they do not exist. Return None for "none"."""
        run = self.run.with_progress(progress)
        if kind in ("shuffled", "scattered"):
            return self._shuffled(kind, make_captions(run, self.config)).make(run).ref
        if kind == "captioner":
            return make_captions(run, self.config)
        return TrueStage().make(run).ref if kind == "true" else None

    def _shuffled(self, kind: Captions, captions: ArtifactRef) -> ShuffleStage:
        config = ShuffleConfig(seed=self.seed, unit="identity" if kind == "shuffled" else "image")
        return ShuffleStage(captions=captions, config=config)


def open_inputs(store: ArtifactStore, recipe: Recipe, seed: int, progress: ProgressFn) -> SeedInputs:
    """Draw the synthetic dataset of `recipe` if it has one, index the images, and return the inputs of its runs."""
    data = ensure_dataset(store, recipe)
    outcome = index(store, config=data, progress=progress)
    return SeedInputs(run=RunContext(store=store, indexed=outcome.images), seed=seed, config=recipe.caption, data=data)
