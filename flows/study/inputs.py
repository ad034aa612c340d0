"""What the runs of one seed read: the images, and captions of every kind. Made at most once, found if they can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.config import CaptionConfig
from captioning.stage.stage import STAGE as CAPTION
from captioning.stage.stage import caption, caption_ingredients
from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.index.stage import index
from data.progress import ProgressFn
from flows.recipes import Recipe
from flows.study.controls import (
    STAGE as CONTROL,
)
from flows.study.controls import (
    TRUTH,
    ShuffleConfig,
    shuffle_across_identities,
    shuffle_ingredients,
    true_attributes,
    true_ingredients,
)
from flows.study.plan import Captions
from flows.worlds import ensure_world


@dataclass(frozen=True, kw_only=True)
class SeedInputs:
    """The data set of one seed.

    seed: of the shuffled captions. images_root: the folder that the image paths are relative to.
    """

    store: ArtifactStore
    seed: int
    images: ArtifactRef
    images_root: Path
    config: CaptionConfig

    @property
    def has_truth(self) -> bool:
        """Whether the true attributes of the images are known."""
        return (self.images_root / TRUTH).is_file()

    def find(self, kind: Captions) -> ArtifactRef | None:
        """Return the captions of `kind` if they are there; makes nothing."""
        match kind:
            case "captioner":
                return self._found(CAPTION, caption_ingredients(self.store, images=self.images, config=self.config))
            case "true":
                ingredients = true_ingredients(self.store, images=self.images, images_root=self.images_root)
                return self._found(CONTROL, ingredients)
            case "shuffled" | "scattered":
                captions = self.find("captioner")
                if captions is None:
                    return None
                return self._found(CONTROL, shuffle_ingredients(captions=captions, config=self._shuffle(kind)))
            case "none":
                return None

    def make(self, kind: Captions, progress: ProgressFn) -> ArtifactRef | None:
        """Return the captions of `kind`, made if they are not there; None for "none"."""
        match kind:
            case "captioner":
                return self._captioned(progress)
            case "true":
                return true_attributes(self.store, images=self.images, images_root=self.images_root).ref
            case "shuffled" | "scattered":
                captions = self._captioned(progress)
                return shuffle_across_identities(self.store, captions=captions, config=self._shuffle(kind)).ref
            case "none":
                return None

    def _captioned(self, progress: ProgressFn) -> ArtifactRef:
        outcome = caption(
            self.store, images=self.images, images_root=self.images_root, config=self.config, progress=progress
        )
        return outcome.made.ref

    def _shuffle(self, kind: Captions) -> ShuffleConfig:
        return ShuffleConfig(seed=self.seed, unit="identity" if kind == "shuffled" else "image")

    def _found(self, stage: str, ingredients: Mapping[str, Any]) -> ArtifactRef | None:
        return self.store.find(stage, fingerprint_of(stage, ingredients))


def open_inputs(store: ArtifactStore, recipe: Recipe, seed: int, progress: ProgressFn) -> SeedInputs:
    """Draw the synthetic data set of `recipe` if it has one, index the images, and return what runs read."""
    data = recipe.data
    if recipe.synthetic is not None and not data.root:
        data = data.model_copy(update={"root": str(ensure_world(store, recipe.synthetic))})
    outcome = index(store, config=data, progress=progress)
    return SeedInputs(
        store=store,
        seed=seed,
        images=outcome.made.ref,
        images_root=outcome.images_root,
        config=recipe.caption,
    )
