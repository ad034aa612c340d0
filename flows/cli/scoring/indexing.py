"""The indexed images of a recipe, for commands that run outside of Prefect."""

from __future__ import annotations

from data.artifacts.store import ArtifactStore
from data.index.stage import IndexStage, index
from data.stages.stage import RunContext
from flows.recipes import Recipe
from flows.terminal import progress_bar
from flows.worlds import ensure_dataset


def indexed_run(recipe: Recipe, store: ArtifactStore, *, reread: bool = False) -> RunContext:
    """Return a run on the images of `recipe`, which are drawn or indexed first; only changed files are read.

    reread: read every file again. Raises DataError if the dataset is unusable.
    """
    data = ensure_dataset(store, recipe)
    with progress_bar(IndexStage.name) as progress:
        images = index(store, config=data, progress=progress, reread=reread).images
    return RunContext(store=store, indexed=images)
