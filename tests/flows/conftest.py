"""Three evaluations, which several files of tests read."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.index.stage import index
from data.synthetic.world import WorldConfig, write_market1501
from tests.helpers.evaluations import rank, write_evaluation


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Return the home of three evaluations of indexed images of synthetic people, and the folder of the images.

    Tests may add evaluations, but must not change what is there.
    """
    folder = tmp_path_factory.mktemp("drawn")
    root, store = folder / "people", ArtifactStore(folder / "home")
    world = WorldConfig(seed=7, train_identities=2, test_identities=9, cameras=3, images_per_camera=2, distractors=3)
    write_market1501(root, world, workers=1)
    time.sleep(0.2)  # the digest of a file that was written just now is not remembered
    images = pq.read_table(
        index(store, config=DatasetConfig(reader="market1501", root=str(root))).made.ref.folder / "images.parquet"
    ).to_pylist()
    folders = {}
    for seed, noise, recipe in ((1, 1.6, "benchmark"), (2, 1.0, "demo"), (3, 1.2, "pku_reid")):
        both = [*rank(images, noise=noise, seed=seed), *rank(images, noise=0.8, seed=seed, mode="fused")]
        folders[recipe] = write_evaluation(store, images, both, recipe=recipe, dataset="synthetic").folder
    return SimpleNamespace(home=store.root, root=root, images=images, store=store, **folders)
