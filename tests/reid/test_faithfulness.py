"""Deletion of patches, its effect on the similarity, and the interval over queries and seeds, against cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reid.relevance.faithfulness import delete, estimate, measure_drops, summarize
from reid.relevance.grid import PatchGrid
from reid.relevance.overlay import overlay, peak, strength

GRID = PatchGrid(rows=4, columns=2, patch=8, stride=8, height=32, width=16)


def encode(images, cameras=None):
    """Return the mean of each patch of the first channel, and a constant."""
    means = F.avg_pool2d(images[:, :1], 8).flatten(1)
    return torch.cat([means, torch.ones(len(means), 1)], dim=1)


def lit(*patches):
    """Return an image of zeros with some patches at one."""
    image = torch.zeros(3, 32, 16)
    for patch in patches:
        image[:, *GRID.area(patch)] = 1.0
    return image


def test_deleted_patches_have_the_mean_color_and_others_stay():
    image = torch.randn(3, 32, 16)
    found = delete(image, GRID, np.array([3, 4]))
    for patch in range(8):
        rows, columns = GRID.area(patch)
        expected = image.mean((1, 2))[:, None, None].expand(3, 8, 8) if patch in (3, 4) else image[:, rows, columns]
        assert torch.equal(found[:, rows, columns], expected)
    assert not torch.equal(image, found), "the image itself is not changed"


def test_falls_equal_a_computation_by_hand():
    images = torch.stack([lit(5), lit(2)])
    maps = torch.zeros(2, 8).scatter_(1, torch.tensor([[5], [2]]), 1.0).view(2, 4, 2)
    drops = measure_drops(encode, images, encode(images), maps, GRID, share=1 / 8, seeds=3)
    # The feature is (patches, 1) = (.., 1, .., 1). Deleting the lit patch leaves (1/8, 1): its cosine with (1, 1) is
    # (1/8 + 1) / (sqrt(2) * sqrt(1 + 1/64)). Deleting a dark one gives it 1/8: 2 / (sqrt(2) * sqrt(2 + 1/64)).
    lit_gone, dark_gone = 9 / 8 / np.sqrt(2 + 1 / 32), 2 / np.sqrt(4 + 1 / 32)
    assert drops.similarity_Q == pytest.approx([1, 1])
    assert drops.lead_Q == pytest.approx([0.5, 0.5]), "the features of the two pairs have the cosine 1/2"
    assert drops.most_Q == pytest.approx(2 * [1 - lit_gone])
    assert drops.least_Q == pytest.approx(2 * [1 - dark_gone])
    assert drops.random_QS.shape == (2, 3)
    either = np.isclose(drops.random_QS, 1 - lit_gone) | np.isclose(drops.random_QS, 1 - dark_gone)
    assert either.all()
    again = measure_drops(encode, images, encode(images), maps, GRID, share=1 / 8, seeds=2)
    assert again.random_QS == pytest.approx(drops.random_QS[:, :2]), "a choice depends on its seed and query only"
    single = measure_drops(encode, images[:1], encode(images[:1]), maps[:1], GRID)
    assert np.isnan(single.lead_Q).all()
    assert summarize(single, 0.25).lead is None


def test_a_faithful_map_beats_random_and_an_unfaithful_one_does_not():
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 8, (40,), generator=generator).tolist()
    images = torch.stack([lit(place) for place in places])
    faithful = torch.stack([F.one_hot(torch.tensor(place), 8).float().view(4, 2) for place in places])
    found = summarize(measure_drops(encode, images, encode(images), faithful, GRID), 0.25)
    assert (found.share, found.queries, found.seeds) == (0.25, 40, 5)
    assert found.difference.low > 0
    assert found.difference.mean == pytest.approx(found.most.mean - found.random.mean)
    assert found.most.mean > found.random.mean > found.least.mean
    wrong = summarize(measure_drops(encode, images, encode(images), 1 - faithful, GRID), 0.25)
    assert wrong.difference.high < 0


def test_the_interval_resamples_queries_and_seeds():
    generator = np.random.default_rng(0)
    assert estimate(np.full((5, 3), 2.0)) == (2.0, 2.0, 2.0)
    # Values that differ between queries only: the interval of a mean of 400 has a half width of 1.96 / 20.
    by_query = estimate(generator.normal(size=(400, 1)) * np.ones((1, 3)))
    assert by_query.high - by_query.low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    # Values that differ between seeds only: more queries do not make the interval narrower.
    by_seed = estimate(np.ones((400, 1)) * generator.normal(size=(1, 100)))
    assert by_seed.high - by_seed.low == pytest.approx(2 * 1.96 / 10, rel=0.2)


def test_color_marks_what_is_above_an_even_share():
    even = np.full((4, 2), 1 / 8)
    assert peak(even) == pytest.approx(1)
    assert not strength(even, GRID, 32, 16).any()
    one = np.zeros((4, 2))
    one[2, 1] = 1.0
    assert peak(one) == 8
    shown = strength(one, GRID, 64, 32)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] in range(32, 48)
    assert np.unravel_index(shown.argmax(), shown.shape)[1] in range(16, 32)
    assert not shown[:16].any()
    # Twice an even share is half of the way from 1 to 3, because no patch is as high as 3.
    pale = np.array([[2, 2], [2, 2], [0, 0], [0, 0]]) / 8
    assert strength(pale, GRID, 32, 16)[0, 0] == pytest.approx(0.5)


def test_an_overlay_is_gray_where_nothing_is_relevant_and_keeps_the_size():
    image = Image.new("RGB", (40, 80), (200, 30, 90))
    one = np.zeros((4, 2))
    one[3, 0] = 1.0
    pixels = np.asarray(overlay(image, one, GRID)).astype(int)
    assert pixels.shape == (80, 40, 3)
    assert np.ptp(pixels[:20], axis=2).max() == 0
    red, green, blue = pixels[72, 5]
    assert red > 150 > max(green, blue)
