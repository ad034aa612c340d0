"""The relevance stage: its maps are those of the library on the images of the dataset, and its key follows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.artifacts.store import ArtifactStore
from reid.config.train import TrainConfig
from reid.inputs.augment import normalize
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import PixelStage, load_pixels
from reid.relevance.maps import similarity_maps
from reid.relevance.stage import RelevanceStage, read_relevance
from reid.training.checkpoint import load_task
from tests.helpers.stages import run_on
from tests.reid.test_evaluate import write_model, write_world


@pytest.fixture(scope="module")
def world(module_folder):
    """Return a run on a small world, and pairs of each query with the gallery images of two people."""
    root = module_folder("world")
    store = ArtifactStore(root / "home")
    run = run_on(store, write_world(store, root / "images"), root / "images")
    rows = read_rows(run.images)
    queries, gallery = rows.path[rows.of_split("query")], rows.path[rows.of_split("gallery")]
    return run, [(str(query), str(image)) for query in queries for image in gallery[:7]]


def stage_of(model, pairs, **changes):
    values = {"pairs": tuple(pairs), "sample": tuple(pairs[::7]), "mode": "image", "device": "cpu"}
    return RelevanceStage(model=model, **{**values, **changes})


def images_of(run, task, paths):
    rows, shape = read_rows(run.images), task.preprocess
    pixels = load_pixels(PixelStage(height=shape.height, width=shape.width).make(run).ref)
    place = {path: number for number, path in enumerate(rows.path)}
    chosen = [place[path] for path in paths]
    images = torch.from_numpy(pixels[rows.position[chosen]]).permute(0, 3, 1, 2)
    return normalize(images, shape.mean, shape.std), task.camera_numbers(rows.camid[chosen].tolist())


@pytest.mark.parametrize(("mode", "sie"), [("image", 0.0), ("fused", 0.0), ("image", 1.0)])
def test_maps_equal_the_library_on_the_same_images(world, mode, sie):
    run, pairs = world
    model = write_model(run.store, TrainConfig(device="cpu", seed=3, sie=sie))
    made = stage_of(model, pairs, mode=mode).make(run)
    found = read_relevance(made.ref)
    assert set(found.pairs) == set(pairs)
    assert len(pairs) > 32, "more than one batch"
    task = load_task(model.folder)
    (query, query_cameras), (image, image_cameras) = (images_of(run, task, side) for side in zip(*pairs, strict=True))
    with torch.no_grad():
        first, second = task.encoders()[mode](query, query_cameras), task.encoders()[mode](image, image_cameras)
    expected = similarity_maps(task, query, second, mode=mode, cameras_B=query_cameras).maps_BRC
    other = similarity_maps(task, image, first, mode=mode, cameras_B=image_cameras).maps_BRC
    for number, pair in enumerate(pairs):
        similarity, query_map, gallery_map = found.pairs[pair]
        assert similarity == pytest.approx(float(F.cosine_similarity(first[number], second[number], dim=0)), abs=1e-5)
        np.testing.assert_allclose(query_map, expected[number].numpy(), atol=1e-4)
        np.testing.assert_allclose(gallery_map, other[number].numpy(), atol=1e-4)
    assert (found.grid.rows, found.grid.columns) == (8, 4)
    assert found.faithfulness.queries == len(pairs[::7])
    for step in (found.faithfulness.most_over_random, found.faithfulness.most_over_center):
        assert step.low <= step.mean <= step.high
    assert stage_of(model, pairs, mode=mode).make(run).cached


def test_the_fingerprint_is_what_the_maps_depend_on(world):
    run, pairs = world
    model = write_model(run.store)
    stage = stage_of(model, pairs)

    def key(stage):
        return stage.plan(run).fingerprint

    assert key(replace(stage, device="auto")) == key(stage)
    changed = [
        replace(stage, mode="fused"),
        replace(stage, pairs=stage.pairs[1:]),
        replace(stage, sample=stage.sample[1:]),
        replace(stage, model=write_model(run.store, TrainConfig(device="cpu", seed=4))),
    ]
    assert len({key(stage), *map(key, changed)}) == 5


def test_without_a_sample_there_is_no_faithfulness(world):
    run, pairs = world
    found = read_relevance(stage_of(write_model(run.store), pairs[:1], sample=()).make(run).ref)
    assert found.faithfulness is None
    assert list(found.pairs) == pairs[:1]
