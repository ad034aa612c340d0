"""The synthetic dataset of a recipe: written once, then treated like any folder of images."""

from __future__ import annotations

import os
from pathlib import Path

from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.synthetic.world import WorldConfig, write_market1501
from flows.recipes import Recipe


def world_folder(store: ArtifactStore, world: WorldConfig) -> Path:
    """Return the folder of the images of `world`, which may not exist yet: one folder per distinct setting."""
    return store.root / "datasets" / f"synthetic-{digest(world.identity())[:12]}"


def dataset_of(store: ArtifactStore, recipe: Recipe) -> DatasetConfig:
    """Return the dataset of `recipe`; if it is synthetic, with its folder, which may not exist yet."""
    if recipe.synthetic is None or recipe.data.root:
        return recipe.data
    return recipe.data.model_copy(update={"root": str(world_folder(store, recipe.synthetic))})


def ensure_dataset(store: ArtifactStore, recipe: Recipe) -> DatasetConfig:
    """Return the dataset of `recipe`; draw it first if it is synthetic and does not exist."""
    if recipe.synthetic is not None and not recipe.data.root:
        ensure_world(store, recipe.synthetic)
    return dataset_of(store, recipe)


def is_drawn(store: ArtifactStore, root: Path) -> bool:
    """Return True if `root` is the folder of a synthetic dataset of `store`."""
    return root.parent == store.root / "datasets" and root.name.startswith("synthetic-")


def ensure_world(store: ArtifactStore, world: WorldConfig) -> Path:
    """Write the synthetic dataset unless its folder exists, and return the folder.

    An existing folder is never changed: users may add or remove images to see which stages run again.
    """
    folder = world_folder(store, world)
    if folder.is_dir():
        return folder
    with store.lock("world", folder.name):
        if not folder.is_dir():  # another run may have drawn it meanwhile
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_market1501(folder, world, workers=os.cpu_count() or 1)
    return folder
