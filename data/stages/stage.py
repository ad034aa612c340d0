"""The Stage object: a name, what its artifact is made from, and how it is made. It needs no Prefect."""

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
"""What a result depends on and nothing else, as plain JSON data; its digest is the fingerprint."""

Producer = Callable[[Path, Path], Produced]
"""`Stage.produce` on a run: called with the artifact's folder and the scratch folder."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every stage of one run shares.

    store: where artifacts live. progress: called with (done, total, note). indexed: the images, None before the index.
    """

    store: ArtifactStore
    progress: ProgressFn = silent
    indexed: IndexedImages | None = None

    @property
    def images(self) -> IndexedImages:
        """The indexed images. Raises ConfigError before the dataset is indexed."""
        if self.indexed is None:
            raise ConfigError("this stage reads the images of a dataset: index it first (data.index.stage.index)")
        return self.indexed

    def with_progress(self, progress: ProgressFn) -> RunContext:
        """Return the same run with another progress callback."""
        return replace(self, progress=progress)


class Stage(ABC):
    """One stage with its inputs and its config, which are the fields of a frozen dataclass.

    Importing the module of a stage loads no model library, so that a run that finds everything stays cheap.
    """

    name: ClassVar[str]
    """Name of the stage, and of its folder in the artifact store."""

    @abstractmethod
    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the artifact is made from. Reads the inputs, writes nothing."""

    @abstractmethod
    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the files of the artifact into the empty `folder`.

        scratch: a folder, perhaps absent, whose content survives a killed run and is removed once the stage is done.
        """

    def settled(self, run: RunContext) -> Stage:
        """Return the stage with everything resolved that could still change, such as a branch of a model hub."""
        return self

    def begin(self, run: RunContext, ingredients: Ingredients) -> Producer:
        """Return what produces the artifact; a stage does here the work that several processes share.

        `make` calls it before it takes the lock under which one process produces the artifact and the others wait.
        ingredients: those that name the artifact.
        """
        return partial(self.produce, run)

    def plan(self, run: RunContext) -> Plan:
        """Return the stage with its ingredients and its fingerprint, which cost one reading of the inputs."""
        ingredients = self.ingredients(run)
        return Plan(stage=self, ingredients=ingredients, fingerprint=fingerprint_of(self.name, ingredients))

    def find(self, run: RunContext) -> ArtifactRef | None:
        """Return the artifact if it is there and intact; makes nothing."""
        return self.plan(run).find(run.store)

    def make(self, run: RunContext) -> Made:
        """Return the artifact, made now if it is not there."""
        return self.plan(run).make(run)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stage that is ready to run: its ingredients are known, and with them the name of its artifact."""

    stage: Stage
    ingredients: Ingredients = field(repr=False)
    fingerprint: str

    def find(self, store: ArtifactStore) -> ArtifactRef | None:
        """Return the artifact if it is there and intact."""
        return store.find(self.stage.name, self.fingerprint)

    def make(self, run: RunContext) -> Made:
        """Return the artifact, made now if it is not intact.

        Of several processes that want the same artifact one makes it and the others wait. An incomplete artifact (say,
        some images could not be read) is handed on but counts as absent next time.
        """
        store, name = run.store, self.stage.name
        found = self.find(store)
        if found is not None:
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
