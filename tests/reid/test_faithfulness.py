"""Deletion of patches, its effect on the similarity, and the interval over queries and seeds, against cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from reid.relevance.faithfulness import Estimate, Faithfulness, center_order, delete, estimate, measure_drops, summarize
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
    assert found.most_over_random.low > 0
    assert found.most_over_random.mean == pytest.approx(found.most.mean - found.random.mean)
    assert found.most.mean > found.random.mean > found.least.mean
    wrong = summarize(measure_drops(encode, images, encode(images), 1 - faithful, GRID), 0.25)
    assert wrong.most_over_random.high < 0


def test_the_center_order_follows_a_gaussian_in_the_middle_of_the_image():
    # Distances on the 4 x 2 grid from the center, in sides: 3/8 or 1/8 down, 1/4 across. The middle rows are nearest.
    assert center_order(GRID).tolist() == [2, 3, 4, 5, 0, 1, 6, 7]
    # On a 3 x 3 grid: the middle, its four neighbors, the four corners.
    square = PatchGrid(rows=3, columns=3, patch=8, stride=8, height=24, width=24)
    assert center_order(square).tolist() == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    # Overlapping patches need not reach the right side: columns at 8, 20 and 32 of 46 pixels; the center is at 23.
    overlapping = PatchGrid(rows=1, columns=3, patch=16, stride=12, height=16, width=46)
    assert center_order(overlapping).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "grid",
    [
        PatchGrid(rows=16, columns=8, patch=16, stride=16, height=256, width=128),
        PatchGrid(rows=21, columns=10, patch=16, stride=12, height=256, width=128),
        PatchGrid(rows=8, columns=4, patch=16, stride=16, height=128, width=64),
    ],
)
def test_the_center_order_is_that_of_the_gaussian_map_itself(grid):
    down = (np.arange(grid.rows) * grid.stride + grid.patch / 2 - grid.height / 2) / grid.height
    across = (np.arange(grid.columns) * grid.stride + grid.patch / 2 - grid.width / 2) / grid.width
    gaussian = np.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 0.25**2)).ravel()
    order = center_order(grid)
    assert sorted(order.tolist()) == list(range(len(grid)))
    assert (np.diff(gaussian[order]) <= 1e-12).all()


def drops_of(places, pointed):
    """Return the faithfulness of maps that point to the patches `pointed`, on images with one lit patch each."""
    images = torch.stack([lit(place) for place in places])
    maps = torch.stack([F.one_hot(torch.tensor(place), 8).float().view(4, 2) for place in pointed])
    return summarize(measure_drops(encode, images, encode(images), maps, GRID, share=1 / 8), 1 / 8)


def test_deleting_the_center_equals_a_computation_by_hand():
    # One patch of eight is deleted: the center order begins with patch 2. It is lit in the first image only.
    images = torch.stack([lit(2), lit(7)])
    maps = torch.zeros(2, 4, 2)
    drops = measure_drops(encode, images, encode(images), maps, GRID, share=1 / 8, seeds=2)
    lit_gone, dark_gone = 9 / 8 / np.sqrt(2 + 1 / 32), 2 / np.sqrt(4 + 1 / 32)
    assert drops.center_Q == pytest.approx([1 - lit_gone, 1 - dark_gone])
    found = summarize(drops, 1 / 8)
    assert found.center.mean == pytest.approx(1 - (lit_gone + dark_gone) / 2)
    assert found.most_over_center.mean == pytest.approx(found.most.mean - found.center.mean)
    assert found.center_over_random.mean == pytest.approx(found.center.mean - found.random.mean)


def test_what_matters_is_in_the_center_and_the_map_points_there_as_the_center_does():
    found = drops_of(40 * [2], 40 * [2])
    assert found.most_over_random.low > 0
    assert found.center_over_random.low > 0
    assert found.most_over_center == (0.0, 0.0, 0.0), "the same patch: no difference, and no map beats the center so"
    assert found.verdict() == (
        "map > center > random is not shown: the most relevant patches matter more than random ones and are not shown "
        "to matter more than those in the center of the image; those in the center matter more than random ones. These "
        "maps may say no more than that people are in the middle"
    )


def test_what_matters_is_at_the_edge_and_the_map_finds_it():
    found = drops_of(40 * [7], 40 * [7])
    assert found.most_over_random.low > 0
    assert found.most_over_center.low > 0
    assert found.center_over_random.high < 0, "random patches are the lit one at times, the center never is"
    assert found.verdict() == (
        "map > center > random does not hold: the most relevant patches matter more than random ones and matter more "
        "than those in the center of the image; those in the center matter less than random ones"
    )


def test_a_map_that_beats_a_center_that_beats_random():
    # Lit are patches 2 (center) for half of the images and 7 for the others; the map always finds it.
    places = 20 * [2, 7]
    found = drops_of(places, places)
    assert found.verdict() == (
        "map > center > random holds: the most relevant patches matter more than random ones and matter more than "
        "those in the center of the image; those in the center matter more than random ones"
    )


@pytest.mark.parametrize(
    ("to_random", "to_center", "between", "held", "limited"),
    [
        ((1, 3), (1, 3), (1, 3), "holds", False),
        ((1, 3), (1, 3), (-1, 3), "is not shown", False),
        ((-1, 3), (1, 3), (1, 3), "is not shown", False),
        ((1, 3), (-1, 3), (1, 3), "is not shown", True),
        ((1, 3), (0, 0), (1, 3), "is not shown", True),
        ((1, 3), (-3, -1), (1, 3), "does not hold", True),
        ((-3, -1), (-3, -1), (-1, 3), "does not hold", True),
    ],
)
def test_the_verdict_says_what_the_intervals_show(to_random, to_center, between, held, limited):
    steps = [Estimate((low + high) / 2, low, high) for low, high in (to_random, to_center, between)]
    verdict = Faithfulness(0.25, 9, 5, None, None, None, None, None, None, *steps).verdict()
    assert verdict.startswith(f"map > center > random {held}: ")
    assert verdict.endswith("people are in the middle") == limited


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
