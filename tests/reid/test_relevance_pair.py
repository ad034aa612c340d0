"""The maps of a pair of images: what is drawn for each kind of model, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import ConfigError
from reid.config.backbone import BackboneConfig
from reid.relevance.pair import explain_pair
from reid.relevance.sheet import HEIGHT
from reid.tasks.build import build_task
from tests.helpers.reid_worlds import small_config

RESNET = BackboneConfig(name="rn50", weights="random", height=64, width=32)


def picture(seed, size=(50, 90)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = (picture(0), picture(1, (64, 128)))


def pair_of(config, **options):
    task = build_task(config, identities=4, cameras=[1, 2]).eval()
    return explain_pair(task, IMAGES, **options), task


@pytest.mark.parametrize(
    ("config", "options", "columns"),
    [
        (small_config(method="clip_baseline"), {}, 1),
        (small_config(), {"mode": "fused"}, 1 + 7),
        (small_config(), {"captions": ["a man", "a woman"]}, 1 + 7 + 2),
        (small_config(backbone=RESNET), {"captions": ["a man"]}, 1 + 7 + 2),
    ],
)
def test_the_sheet_has_a_column_per_map(config, options, columns):
    pair, task = pair_of(config, **options)
    groups = pair._groups(1)
    assert sum(len(group.panels) for group in groups) == columns
    for group in groups:
        for panel in group.panels:
            assert panel.map_RC.shape == tuple(task.backbone.clip.visual.grid_size)
            assert panel.map_RC.sum() == pytest.approx(1, abs=1e-4)
    sheet = pair.draw(("query: one.png", "gallery: two.png"))
    assert sheet.width > (1 + columns) * HEIGHT // 2
    assert sheet.height > 2 * HEIGHT
    assert len(list(pair.lines())) == 3


@pytest.mark.parametrize(
    ("most", "center", "words"),
    [
        (0.5, 0.25, "the map beats the center of the image and beats 3 of 4 random choices; the center beats 2 of 4"),
        (
            0.25,
            0.25,
            "the map does not beat the center of the image and beats 2 of 4 random choices; the center beats 2",
        ),
        (
            0.0,
            0.75,
            "the map does not beat the center of the image and beats 0 of 4 random choices; the center beats 4",
        ),
    ],
)
def test_the_map_is_compared_with_the_center_and_random_choices(most, center, words):
    pair, _ = pair_of(small_config(method="clip_baseline"))
    random = np.array([[0.1, 0.2, 0.4, 0.6]])
    drops = replace(pair.drops, most_Q=np.array([most]), center_Q=np.array([center]), random_QS=random)
    _, falls, comparison = replace(pair, drops=drops).lines()
    assert f"by {most:.4f} (most relevant), by {center:.4f} (center of the image), by 0.3250 ± " in falls
    assert comparison.startswith(f"for this query, {words}")


def test_falls_that_print_as_zero_are_said_to_show_nothing():
    pair, _ = pair_of(small_config(method="clip_baseline"))
    tiny, random = np.array([2e-5]), np.array([[1e-5, -4e-5]])
    drops = replace(pair.drops, most_Q=tiny, center_Q=-tiny, least_Q=tiny, random_QS=random)
    *_, last = replace(pair, drops=drops).lines()
    assert last.startswith("this check shows nothing about the map")


def test_both_images_are_explained_against_each_other():
    pair, task = pair_of(small_config())
    swapped = explain_pair(task, IMAGES[::-1])
    np.testing.assert_allclose(swapped.maps_2RC, pair.maps_2RC[::-1], atol=1e-5)
    assert swapped.similarity == pytest.approx(pair.similarity, abs=1e-6)
    same = explain_pair(task, (IMAGES[0], IMAGES[0]))
    assert same.similarity == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(same.maps_2RC[0], same.maps_2RC[1], atol=1e-5)
    assert torch.isfinite(torch.from_numpy(same.maps_2RC)).all()


def test_what_cannot_be_explained_is_named():
    with pytest.raises(ConfigError, match=r"camera embeddings.*train\.sie=0"):
        pair_of(small_config(sie=1.0))
    with pytest.raises(ConfigError, match="stages of a ResNet have no attention"):
        pair_of(small_config(backbone=RESNET), method="rollout")
    with pytest.raises(ConfigError, match="does not have the mode 'fused'"):
        pair_of(small_config(method="clip_baseline"), mode="fused")
    with pytest.raises(ConfigError, match="does not have CGI"):
        pair_of(small_config(method="clip_baseline"), captions=["a man"])
