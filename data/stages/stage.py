"""The Stage object: its name, its ingredients, and how its artifact is made. Independent of Prefect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from data.artifacts.store import ArtifactRef, ArtifactStore, Made, Produced, fingerprint_of
from data.errors import ConfigError
from data.progress import ProgressFn, silent
from data.stages.images import IndexedImages

Ingredients = Mapping[str, Any]
"""Exactly what a result depends on, as plain JSON data; its digest is the fingerprint."""

Producer = Callable[[Path, Path], Produced]
"""`Stage.produce` bound to a run; called with the folder of the artifact and the scratch folder."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The context that all stages of one run share.

    store: where artifacts are stored. progress: called with (done, total, note). indexed: the images; None before the
    index stage.
    """

    store: ArtifactStore
    progress: ProgressFn = silent
    indexed: IndexedImages | None = None

    @property
    def images(self) -> IndexedImages:
        """The indexed images. Raises ConfigError if the dataset is not indexed yet."""
        if self.indexed is None:
            raise ConfigError("this stage reads the images of a dataset: index it first (data.index.stage.index)")
        return self.indexed

    def with_progress(self, progress: ProgressFn) -> RunContext:
        """Return the same run with another progress callback."""
        return replace(self, progress=progress)


class Stage(ABC):
    """One stage with its inputs and its config, which are the fields of a frozen dataclass.

    Importing the module of a stage does not load any model library, so that a fully cached run stays cheap.
    """

    name: ClassVar[str]
    """Name of the stage and of its folder in the artifact store."""

    @abstractmethod
    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the artifact depends on. Reads the inputs and writes nothing."""

    @abstractmethod
    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the files of the artifact into the empty `folder`.

        scratch: a folder that may not exist yet; it survives a killed run and is removed once the stage is done.
        """

    def settled(self, run: RunContext) -> Stage:
        """Return the stage with everything pinned that could still change, such as a branch on a model hub."""
        return self

    def begin(self, run: RunContext, ingredients: Ingredients) -> Producer:
        """Return the function that produces the artifact; first do any work that several processes share.

        `make` calls this before it takes the lock under which one process produces the artifact while others wait.
        ingredients: those that name the artifact.
        """
        return partial(self.produce, run)

    def plan(self, run: RunContext) -> Plan:
        """Return the stage with its ingredients and fingerprint, for which the inputs are read once."""
        ingredients = self.ingredients(run)
        return Plan(stage=self, ingredients=ingredients, fingerprint=fingerprint_of(self.name, ingredients))

    def find(self, run: RunContext) -> ArtifactRef | None:
        """Return the artifact if it exists and is intact; never make it."""
        return self.plan(run).find(run.store)

    def make(self, run: RunContext) -> Made:
        """Return the artifact; make it if it does not exist or is damaged."""
        return self.plan(run).make(run)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stage that is ready to run, with its ingredients and the fingerprint that names its artifact."""

    stage: Stage
    ingredients: Ingredients = field(repr=False)
    fingerprint: str

    def find(self, store: ArtifactStore) -> ArtifactRef | None:
        """Return the artifact if it exists and is intact."""
        return store.find(self.stage.name, self.fingerprint)

    def make(self, run: RunContext) -> Made:
        """Return the artifact; make it if it does not exist or is damaged.

        If several processes need the same artifact, one makes it and the others wait. An incomplete artifact (some
        images could not be read, for example) is returned, but it is made again next time.
        """
        store, name = run.store, self.stage.name
        found = self.find(store)
        if found is not None:
            store.touch(found)
            return Made(ref=found, cached=True)
        settled = self.stage.settled(run)
        if settled is not self.stage:
            return settled.make(run)
        produce = self.stage.begin(run, self.ingredients)
        with store.lock(name, self.fingerprint):
            found = self.find(store)
            if found is not None:
                return Made(ref=found, cached=True)
            with store.draft(name, self.fingerprint) as folder:
                produced = produce(folder, store.scratch(name, self.fingerprint))
                ref = store.publish(folder, name, self.ingredients, produced)
        return Made(ref=ref, cached=False, produced=produced)
