"""The inputs of all runs of one seed: the images and every kind of captions, made only if not found."""

from __future__ import annotations

from dataclasses import dataclass, field

from captioning.config import CaptionConfig
from captioning.corrections.stage import find_captions, make_captions
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.datasets import DatasetConfig
from data.index.stage import index
from data.progress import ProgressFn
from data.stages.stage import RunContext, Stage
from flows.recipes import Recipe
from flows.study.controls import TRUTH, FixedStage, ShuffleConfig, ShuffleStage, TrueStage
from flows.study.plan import Captions
from flows.worlds import ensure_dataset


@dataclass(frozen=True, kw_only=True)
class SeedInputs:
    """The dataset of one seed, as `data` describes it, and its captions. seed: of the shuffled captions."""

    run: RunContext
    seed: int
    config: CaptionConfig
    data: DatasetConfig
    _found: dict[Captions, ArtifactRef] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_truth(self) -> bool:
        """True if the true attributes of the images are known."""
        return (self.run.images.root / TRUTH).is_file()

    @property
    def turn(self) -> str:
        """Name of the lock that a process holds while it makes the captions of the captioner."""
        return fingerprint_of("study_captions", {"images": self.run.images.ref.fingerprint, "seed": self.seed})

    def find(self, kind: Captions) -> ArtifactRef | None:
        """Return the captions of `kind` if they exist; never make them. What was found once is not looked up again."""
        if kind not in self._found:
            found = None if kind == "none" else self._look(kind)
            if found is None:
                return None
            self._found[kind] = found
        return self._found[kind]

    def make(self, kind: Captions, progress: ProgressFn) -> ArtifactRef | None:
        """Return the captions of `kind`; make them if they do not exist. Return None for "none"."""
        if kind == "none":
            return None
        if kind not in self._found:
            run = self.run.with_progress(progress)
            if kind == "captioner":
                self._found[kind] = make_captions(run, self.config)
            else:
                captions = self.make("captioner", progress) if _shuffles(kind) else None
                self._found[kind] = self._control(kind, captions).make(run).ref
        return self._found[kind]

    def _look(self, kind: Captions) -> ArtifactRef | None:
        if kind == "captioner":
            return find_captions(self.run, self.config)
        captions = self.find("captioner") if _shuffles(kind) else None
        return None if captions is None and _shuffles(kind) else self._control(kind, captions).find(self.run)

    def _control(self, kind: Captions, captions: ArtifactRef | None) -> Stage:
        """Return the stage that makes captions other than the captioner's. captions: those that are shuffled."""
        if kind in ("constant", "empty"):
            return FixedStage(kind=kind)
        if captions is None:
            return TrueStage()
        config = ShuffleConfig(seed=self.seed, unit="identity" if kind == "shuffled" else "image")
        return ShuffleStage(captions=captions, config=config)


def _shuffles(kind: Captions) -> bool:
    """Return True if `kind` exchanges the captions of the captioner."""
    return kind in ("shuffled", "scattered")


def open_inputs(store: ArtifactStore, recipe: Recipe, seed: int, progress: ProgressFn) -> SeedInputs:
    """Draw the synthetic dataset of `recipe` if it has one, index the images, and return the inputs of its runs."""
    data = ensure_dataset(store, recipe)
    outcome = index(store, config=data, progress=progress)
    return SeedInputs(run=RunContext(store=store, indexed=outcome.images), seed=seed, config=recipe.caption, data=data)
