"""Faithfulness of maps: deleting the most relevant patches must lower the similarity more than deleting others.

There are two controls with the same number of patches: random ones, and those nearest to the center of the image. Crops
of people show the person there, so a map that only beats random patches may say no more than "the person".

A deleted patch gets the mean color of its image. Where patches overlap, those that lie together (relevant or central)
delete fewer pixels than the same number of random ones.

Shapes: Q pairs of a query and a gallery image, S seeds, F retrieval features, P patches, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data.process.environment import exact_float32
from reid.relevance.grid import PatchGrid

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Encode = Callable[[Tensor, Tensor | None], Tensor]

SHARE: Final = 0.25
"""Share of the patches to delete."""
SEEDS: Final = 5
"""Random choices of patches per query."""
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Drops:
    """How far the similarity falls when patches of the query are deleted: the most and least relevant, and controls.

    similarity_Q: before. lead_Q: how far that is above the mean similarity to the targets of the other queries; NaN for
    a single query. center_Q: the first patches of `center_order`. random_QS: random ones.
    """

    similarity_Q: Floats
    lead_Q: Floats
    most_Q: Floats
    least_Q: Floats
    center_Q: Floats
    random_QS: Floats


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Faithfulness(NamedTuple):
    """Mean falls of the cosine similarity, with intervals over queries and seeds.

    share: of the patches that are deleted. lead: of the similarity over that to the targets of the other queries; after
    a fall by as much, a pair is no more similar than any two images; None for a single query. The last three are
    differences of falls, query by query: most relevant minus random, most relevant minus central, central minus random.
    Faithful maps have low > 0 in the first. If they have so in the second too, they say more than the center does.
    """

    share: float
    queries: int
    seeds: int
    similarity: Estimate
    lead: Estimate | None
    most: Estimate
    center: Estimate
    random: Estimate
    least: Estimate
    most_over_random: Estimate
    most_over_center: Estimate
    center_over_random: Estimate

    def verdict(self) -> str:
        """Return what the intervals show, in words: whether map > center > random holds, and each part of it."""
        steps = (self.most_over_random, self.most_over_center, self.center_over_random)
        to_random, to_center, between = (_relation(step) for step in steps)
        held = "holds" if all(step.low > 0 for step in steps) else "is not shown"
        if any(step.high < 0 for step in steps):
            held = "does not hold"
        limit = (
            "" if self.most_over_center.low > 0 else ". These maps may say no more than that people are in the middle"
        )
        return (
            f"map > center > random {held}: the most relevant patches {to_random} random ones and {to_center} those in "
            f"the center of the image; those in the center {between} random ones{limit}"
        )


def _relation(difference: Estimate) -> str:
    """Return how the first of two choices of patches compares with the second, as far as the interval shows it."""
    if difference.low > 0:
        return "matter more than"
    return "matter less than" if difference.high < 0 else "are not shown to matter more than"


def center_order(grid: PatchGrid) -> Ints:
    """Return the positions from the highest value of a Gaussian at the center of the image to the lowest.

    Its widths are in proportion to the sides of the image. The proportion alone decides the order, so none is chosen.
    Of positions with the same value, the upper left one comes first.
    """
    rows, columns = np.divmod(np.arange(len(grid)), grid.columns)
    # Twice the distance from the center in pixels, times the other side: integers, so that equal values stay equal.
    down = (2 * rows * grid.stride + grid.patch - grid.height) * grid.width
    across = (2 * columns * grid.stride + grid.patch - grid.width) * grid.height
    return np.argsort(down**2 + across**2, kind="stable")


def delete(image_CHW: Tensor, grid: PatchGrid, positions: Ints) -> Tensor:
    """Return a copy of the image with the patches at `positions` in the image's mean color."""
    deleted_CHW, color_C11 = image_CHW.clone(), image_CHW.mean((1, 2), keepdim=True)
    for position in positions.tolist():
        rows, columns = grid.area(position)
        deleted_CHW[:, rows, columns] = color_C11
    return deleted_CHW


@torch.no_grad()
@exact_float32(torch)
def measure_drops(
    encode: Encode,
    images_QCHW: Tensor,
    targets_QF: Tensor,
    maps_QRC: Tensor,
    grid: PatchGrid,
    *,
    share: float = SHARE,
    seeds: int = SEEDS,
    cameras_Q: Tensor | None = None,
) -> Drops:
    """Delete patches of each query and measure how far its similarity to its target falls.

    Args:
        encode: (normalized images [B, 3, H, W], camera numbers [B] or None) -> retrieval features [B, F].
        images_QCHW: the queries, normalized.
        targets_QF: features of the gallery images.
        maps_QRC: relevance of each patch of the queries.
        grid: where the patches lie.
        share: of the patches, to delete; at least one is.
        seeds: random choices of patches per query.
        cameras_Q: camera numbers of the queries, for encoders that need them.
    """
    wanted_QF, count = _unit(targets_QF), max(1, round(share * len(grid)))

    def after(chosen: list[Ints]) -> Floats:
        images = (delete(image, grid, positions) for image, positions in zip(images_QCHW, chosen, strict=True))
        return similarity_Q - (features(images) * wanted_QF).sum(1)

    features = partial(_features, encode, cameras_N=cameras_Q, count=len(images_QCHW))
    all_QQ = features(iter(images_QCHW)) @ wanted_QF.T
    similarity_Q = np.diag(all_QQ)
    order = [np.argsort(-relevance, kind="stable") for relevance in maps_QRC.flatten(1).cpu().numpy()]
    return Drops(
        similarity_Q=similarity_Q,
        lead_Q=_lead(all_QQ),
        most_Q=after([positions[:count] for positions in order]),
        least_Q=after([positions[-count:] for positions in order]),
        center_Q=after(len(order) * [center_order(grid)[:count]]),
        random_QS=np.stack([after(_random(len(order), len(grid), count, seed)) for seed in range(seeds)], axis=1),
    )


def _lead(all_QQ: Floats) -> Floats:
    """Return how far each similarity on the diagonal is above the mean of the others in its row."""
    own_Q, queries = np.diag(all_QQ), len(all_QQ)
    if queries == 1:
        return np.full(1, np.nan)
    return own_Q - (all_QQ.sum(1) - own_Q) / (queries - 1)


def _unit(features_NF: Tensor) -> Floats:
    """Return the rows at length one, in float64: the features of a model may differ in the last digits of float32."""
    unit_NF: Floats = F.normalize(features_NF.double(), dim=1).cpu().numpy()
    return unit_NF


def _features(encode: Encode, images: Iterator[Tensor], *, count: int, cameras_N: Tensor | None) -> Floats:
    """Return the unit features [count, F] of the images, which are encoded in batches."""
    found = []
    for start in range(0, count, _BATCH):
        images_BCHW = torch.stack(list(islice(images, min(_BATCH, count - start))))
        cameras_B = None if cameras_N is None else cameras_N[start : start + _BATCH]
        found.append(_unit(encode(images_BCHW, cameras_B)))
    return np.concatenate(found)


def _random(queries: int, patches: int, count: int, seed: int) -> list[Ints]:
    return [np.random.default_rng([seed, query]).permutation(patches)[:count] for query in range(queries)]


def summarize(drops: Drops, share: float) -> Faithfulness:
    """Return means and intervals of `drops`."""
    return Faithfulness(
        share=share,
        queries=len(drops.most_Q),
        seeds=drops.random_QS.shape[1],
        similarity=estimate(drops.similarity_Q[:, None]),
        lead=estimate(drops.lead_Q[:, None]) if len(drops.lead_Q) > 1 else None,
        most=estimate(drops.most_Q[:, None]),
        center=estimate(drops.center_Q[:, None]),
        random=estimate(drops.random_QS),
        least=estimate(drops.least_Q[:, None]),
        most_over_random=estimate(drops.most_Q[:, None] - drops.random_QS),
        most_over_center=estimate((drops.most_Q - drops.center_Q)[:, None]),
        center_over_random=estimate(drops.center_Q[:, None] - drops.random_QS),
    )


def estimate(values_QS: Floats) -> Estimate:
    """Return the mean of the values and its interval: a percentile bootstrap that resamples queries and seeds."""
    generator = np.random.default_rng(0)
    queries, seeds = values_QS.shape
    times_RQ = generator.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES)
    times_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    means_R = np.einsum("rq,qs,rs->r", times_RQ, values_QS, times_RS, optimize=True) / values_QS.size
    low, high = np.quantile(means_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(values_QS.mean()), float(low), float(high))
