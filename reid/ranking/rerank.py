"""k-reciprocal re-ranking (Zhong, Zheng, Cao, Li: Re-ranking Person Re-identification with k-reciprocal Encoding,
CVPR 2017), sparse and in blocks: at the size of MSMT17 a dense implementation needs 35 GB.

The steps run over all N = Q + G images. d(i, j) is the squared Euclidean distance of unit vectors, divided by the
largest of row i, as in the authors' public code:

1. R(i, k): those of the first k + 1 neighbors of i (itself included) that have i among theirs.
2. R*(i): R(i, k1) and every R(j, k1 / 2), j in R(i, k1), of which more than two thirds lie in R(i, k1).
3. V(i, j) = exp(-d(i, j)) for j in R*(i), scaled to sum to one; then averaged over the first k2 neighbors of i.
4. Result: (1 - weight) * (Jaccard distance of V(q) and V(g)) + weight * d(q, g).

The result of a query depends on all other images, but not on their order, the block size or the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import DataError
from reid.config.evaluate import RerankConfig
from reid.ranking.kernel import run_on_slices, top_rows
from reid.ranking.rerank_kernel import average_rows, columns_of, expand_rows, jaccard_rows, reciprocal_rows, weigh_rows
from reid.ranking.similarity import BLOCK_BYTES, FeatureRows, Scores, similarity_blocks

Ints = NDArray[np.int64]
Float32s = NDArray[np.float32]


class _Sparse(NamedTuple):
    starts: Ints
    columns: Ints
    values: Float32s


def rerank_blocks(
    queries: FeatureRows, gallery: FeatureRows, config: RerankConfig, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, Scores]]:
    """Yield (first query row, re-ranked distances float32 [b, W]) for consecutive blocks of query rows.

    W is G rounded up to whole tiles; the columns from G on are +inf. Keeps the N x D features, max(k1 + 1, k2)
    neighbors per image and the sparse V in memory. The array is overwritten by the next block.

    Raises:
        DataError: a row of zeros, which has no direction, or features that are not finite.
    """
    size = len(queries)
    features = torch.cat([_unit(rows) for rows in (queries, gallery)])
    neighbors, farthest = _nearest(
        FeatureRows(features, "image", unit=True), max(config.k1 + 1, config.k2), block_bytes
    )
    encoded = _encode(features.numpy(), neighbors, farthest, config.k1)
    if config.k2 > 1:
        encoded = _averaged(encoded, neighbors, min(config.k2, len(features)))
    columns = _columns(encoded, size)
    unit_queries, unit_gallery = (FeatureRows(part, "image", unit=True) for part in (features[:size], features[size:]))
    for start, scores in similarity_blocks(unit_queries, unit_gallery, block_bytes):

        def work(part: slice, start: int = start, scores: Scores = scores) -> None:
            rows = np.arange(start + part.start, start + part.stop)
            jaccard_rows(rows, *encoded, *columns, np.float32(config.weight), farthest, scores[part])

        run_on_slices(len(scores), work)
        yield start, scores


def _unit(rows: FeatureRows) -> torch.Tensor:
    unit = rows.block(0, len(rows))[: len(rows)]
    zeros = (~unit.any(dim=1)).nonzero()
    if len(zeros):
        raise DataError(
            f"row {rows.number(int(zeros[0]))} of the {rows.name} features is all zeros and has no direction, which "
            "re-ranking needs: leave the image out, or set evaluate.rerank=null"
        )
    return unit


def _nearest(images: FeatureRows, k: int, block_bytes: int) -> tuple[Ints, Float32s]:
    """Return the k nearest images of each image (itself included), [N, k], and its largest squared distance, [N]."""
    k = min(k, len(images))
    neighbors = np.empty((len(images), k), np.int64)
    farthest = np.empty(len(images), np.float32)
    for start, scores in similarity_blocks(images, images, block_bytes):

        def work(part: slice, start: int = start, scores: Scores = scores) -> None:
            rows = slice(start + part.start, start + part.stop)
            count = part.stop - part.start
            top_rows(scores[part], 0, np.zeros(count, np.int64), neighbors[rows], np.empty((count, k), np.float32))
            # If all images are equal, the largest distance is 0 and cannot be a divisor.
            farthest[rows] = np.maximum(2 - 2 * scores[part, : len(images)].min(axis=1), np.float32(1e-12))

        run_on_slices(len(scores), work)
    return neighbors, farthest


def _encode(features: Float32s, neighbors: Ints, farthest: Float32s, k1: int) -> _Sparse:
    # `round` rounds halves to even, like numpy.around in the public code.
    full, full_count = _reciprocal(neighbors, k1)
    half, half_count = _reciprocal(neighbors, round(k1 / 2))

    def expand(rows: Ints, start: Ints, index: Ints, _: Float32s) -> None:
        expand_rows(full, full_count, half, half_count, rows, start, index)

    encoded = _counted_then_filled(len(neighbors), expand)

    def weigh(part: slice) -> None:
        rows = np.arange(part.start, part.stop)
        weigh_rows(
            features, farthest, rows, encoded.starts[part.start : part.stop + 1], encoded.columns, encoded.values
        )

    run_on_slices(len(neighbors), weigh)
    return encoded


def _reciprocal(neighbors: Ints, k: int) -> tuple[Ints, Ints]:
    k = min(k, len(neighbors) - 1)
    found = np.empty((len(neighbors), k + 1), np.int64)
    count = np.empty(len(neighbors), np.int64)

    def work(part: slice) -> None:
        reciprocal_rows(neighbors, k, np.arange(part.start, part.stop), found[part], count[part])

    run_on_slices(len(neighbors), work)
    return found, count


def _averaged(encoded: _Sparse, neighbors: Ints, k2: int) -> _Sparse:
    def average(rows: Ints, start: Ints, index: Ints, value: Float32s) -> None:
        average_rows(neighbors, k2, rows, *encoded, start, index, value)

    return _counted_then_filled(len(neighbors), average)


def _counted_then_filled(rows: int, kernel: Callable[[Ints, Ints, Ints, Float32s], None]) -> _Sparse:
    """Run `kernel(rows, start, index, value)` twice: to count each row's entries in `start`, and to write them."""
    start = np.zeros(rows + 1, np.int64)
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    run_on_slices(
        rows, lambda part: kernel(np.arange(part.start, part.stop), start[part.start : part.stop + 1], *nothing)
    )
    np.cumsum(start, out=start)
    filled = np.empty(start[-1], np.int64), np.empty(start[-1], np.float32)
    run_on_slices(
        rows, lambda part: kernel(np.arange(part.start, part.stop), start[part.start : part.stop + 1], *filled)
    )
    return _Sparse(start, *filled)


def _columns(encoded: _Sparse, first_row: int) -> _Sparse:
    """Return the rows from `first_row` on (the gallery) by column; row numbers count from `first_row`."""
    entries = encoded.columns[encoded.starts[first_row] :]
    ends = np.concatenate([[0], np.cumsum(np.bincount(entries, minlength=len(encoded.starts) - 1))])
    running = ends.copy()
    row, value = np.empty(len(entries), np.int64), np.empty(len(entries), np.float32)
    columns_of(first_row, *encoded, running, row, value)
    return _Sparse(ends, row, value)
