"""The runs of a study: every variant with every seed in every world, each with its inputs and its configs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.progress import ProgressFn
from flows.recipes import Recipe
from flows.study.inputs import SeedInputs, open_inputs
from flows.study.plan import VARIANTS, Captions, StudyConfig, Variant, variants_of
from flows.study.plan.main import ORACLES
from flows.study.stage import RunStage
from flows.study.training import recipe_of, training_of
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig

TURN: Final = "study_turn"


class World(NamedTuple):
    """A recipe and the size of its study."""

    recipe: Recipe
    config: StudyConfig


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a study with its evaluation, done or not.

    world: name of the recipe. oracle: also score the model with the true attributes of all test images; runs that share
    a training share this too.
    """

    world: str
    variant: Variant
    seed: int
    inputs: SeedInputs
    train: TrainConfig
    evaluate: EvaluateConfig
    oracle: bool

    @property
    def label(self) -> str:
        """Name of the run in the terminal and in messages."""
        return f"{self.variant.name}, seed {self.seed}, {self.world}"

    def find(self) -> ArtifactRef | None:
        """Return the artifact of the finished run, or None; never start the run."""
        kind = self.variant.captions
        captions, sentences = self.inputs.find(kind), self.inputs.find("captioner")
        if sentences is None or (captions is None and kind != "none"):
            return None
        return self.stage(captions, sentences).find(self.inputs.run)

    def make(self, progress: ProgressFn) -> ArtifactRef:
        """Return the artifact of the run; do the run, and make its captions, if it is not finished."""
        sentences = self.inputs.make("captioner", progress)
        captions = self.inputs.make(self.variant.captions, progress)
        return self.stage(captions, sentences).make(self.inputs.run.with_progress(progress)).ref

    def stage(self, captions: ArtifactRef | None, sentences: ArtifactRef | None) -> RunStage:
        """Return the stage that does the run. sentences: captions whose query rows are searched for."""
        return RunStage(
            train=self.train, evaluate=self.evaluate, captions=captions, sentences=sentences, oracle=self.oracle
        )

    @property
    def turn(self) -> str:
        """Name of the lock that a process holds for this run, which does not require that its captions exist."""
        config = {"train": self.train.identity(), "evaluate": self.evaluate.identity()}
        what = {"images": self.inputs.run.images.ref.fingerprint, "captions": self.variant.captions, "seed": self.seed}
        return fingerprint_of(TURN, what | config)

    @property
    def obstacle(self) -> str:
        """Reason why the dataset does not support the run, or an empty text."""
        if self.variant.captions == "true" and not self.inputs.has_truth:
            return "true attributes exist for synthetic images only"
        return ""


def plan(store: ArtifactStore, worlds: Sequence[World], progress: ProgressFn) -> Iterator[Run]:
    """Yield every run of the study, seed by seed; draw and index the images of each seed and world.

    A stopped study so has the same number of seeds for all variants of a group, except for the last one.
    """
    for seed in range(max(max(world.config.seeds, world.config.sweep_seeds or 0) for world in worlds)):
        for world in worlds:
            variants = variants_of(world.config, seed)
            if variants:
                yield from _runs(store, world, seed, variants, progress)


def _runs(
    store: ArtifactStore, world: World, seed: int, variants: Sequence[Variant], progress: ProgressFn
) -> Iterator[Run]:
    own = recipe_of(world.recipe, world.config, seed)
    inputs = open_inputs(store, own, seed, _named(f"{own.name}, seed {seed}", progress))
    scored = _scored_by_oracle(own, seed) if inputs.has_truth else []
    for variant in variants:
        train = training_of(variant, own.train, seed)
        yield Run(
            world=own.name,
            variant=variant,
            seed=seed,
            inputs=inputs,
            train=train,
            evaluate=own.evaluate,
            oracle=(variant.captions, train.identity()) in scored,
        )


def _named(label: str, progress: ProgressFn) -> ProgressFn:
    """Return a progress callback whose notes say which dataset they are about."""

    def show(done: int, total: int, note: str) -> None:
        progress(done, total, f"{label}: {note}")

    return show


def _scored_by_oracle(recipe: Recipe, seed: int) -> list[tuple[Captions, dict[str, Any]]]:
    """Return captions and training of the variants that have an oracle."""
    found = [variant for variant in VARIANTS if variant.name in ORACLES]
    return [(variant.captions, training_of(variant, recipe.train, seed).identity()) for variant in found]
