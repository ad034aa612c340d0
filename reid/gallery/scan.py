"""The nearest rows of a query by an exact product, block by block.

Shapes: N rows of the gallery, B rows of a block, D values of an embedding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from reid.gallery.entry import Float32s, Int64s

_GATHER_SHARE: Final = 0.3
"""Below this share of selected rows, gathering them is faster than multiplying the whole block."""
_GATHER_ROWS: Final = 512
"""Rows gathered at a time: a megabyte at D = 512, which stays in the processor's cache until it is multiplied."""
_MOST_THREADS: Final = 8
_ALONE: Final = 16_384
"""Up to so many selected rows, one thread is faster than waking others."""


class Nearest(NamedTuple):
    """Rows of the gallery with their cosine similarity, the nearest first; equal ones by row."""

    rows: Int64s
    scores: Float32s


def nearest(blocks: Sequence[Float32s], query_D: Float32s, top: int, selected: Int64s | None = None) -> Nearest:
    """Return the `top` rows with the largest product with the query, or all if there are fewer.

    blocks: the gallery, float32 [B, D] each. selected: the rows to consider, ascending, [up to N]; None: all.
    """
    if selected is None:
        scores = np.empty(sum(map(len, blocks)), np.float32)
        start = 0
        for block_BD in blocks:
            np.matmul(block_BD, query_D, out=scores[start : start + len(block_BD)])
            start += len(block_BD)
        return _best(scores, None, top)
    return _best(_selected_scores(blocks, query_D, selected), selected, top)


def _selected_scores(blocks: Sequence[Float32s], query_D: Float32s, selected: Int64s) -> Float32s:
    scores = np.empty(len(selected), np.float32)
    ends = np.cumsum([len(block) for block in blocks])
    bounds = np.concatenate([[0], np.searchsorted(selected, ends)]) if blocks else np.zeros(1, np.int64)
    threads = min(_threads(), _MOST_THREADS) if len(selected) > _ALONE else 1
    with ThreadPoolExecutor(threads) as pool:  # starts its threads only when they get work
        for number, block_BD in enumerate(blocks):
            part = slice(bounds[number], bounds[number + 1])
            local, out = selected[part] - (ends[number] - len(block_BD)), scores[part]
            if len(local) >= _GATHER_SHARE * len(block_BD):
                out[:] = np.matmul(block_BD, query_D)[local]
            elif len(local):
                starts = range(0, len(local), _GATHER_ROWS)
                jobs = [partial(_gather, block_BD, query_D, local, starts[own::threads], out) for own in range(threads)]
                run = map if threads == 1 else pool.map
                list(run(lambda job: job(), jobs))
    return scores


def _gather(block_BD: Float32s, query_D: Float32s, rows: Int64s, starts: Sequence[int], out: Float32s) -> None:
    buffer = np.empty((_GATHER_ROWS, block_BD.shape[1]), np.float32)
    for start in starts:
        some = rows[start : start + _GATHER_ROWS]
        gathered = np.take(block_BD, some, axis=0, out=buffer[: len(some)], mode="clip")
        np.matmul(gathered, query_D, out=out[start : start + len(some)])


def _best(scores: Float32s, rows: Int64s | None, top: int) -> Nearest:
    count = min(top, len(scores))
    if not count:
        return Nearest(np.empty(0, np.int64), np.empty(0, np.float32))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero(scores >= least)
    places = places[np.argsort(-scores[places], kind="stable")][:count]
    return Nearest(places if rows is None else rows[places], scores[places])


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
