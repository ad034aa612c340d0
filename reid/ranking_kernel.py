"""The compiled loops of ranking: count what stands before each relevant image, keep the nearest few. No sort of a row.

Compiled by numba on first use (about a second, then cached beside the source where that folder can be written). The
loops let go of the interpreter lock and are run on slices of rows by a thread pool, not by numba's own threads, whose
default layer must not be entered from two threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled on first use, without the interpreter lock, cached on disk where that is possible."""
    try:
        return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder for the cache can be written (a read-only install without a home)
        return njit(nogil=True)(function)  # type: ignore[no-any-return]


def run_on_slices(rows: int, work: Callable[[slice], None]) -> None:
    """Call `work` on slices that together cover `rows` rows, one a thread that torch would use."""
    threads = max(1, min(torch.get_num_threads(), rows))
    bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
    slices = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    if threads == 1:
        work(slices[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass


@compiled
def rank_rows(scores, by_pid, begin, end, gallery_cams, query_cams, same_camera, ap, inp, first_hit, n_relevant):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, PLR0917
    """Fill in the results of each query row; `scores` [b, G] gets -inf where the gallery image does not count.

    by_pid: gallery positions sorted by identity; those of the query's identity are by_pid[begin:end].
    same_camera: leave out images of the query's identity from its own camera.
    ap, inp, first_hit (1-based), n_relevant: results, [b]; a row with n_relevant 0 is otherwise left alone.
    """
    size = scores.shape[1]
    for row in range(scores.shape[0]):
        line = scores[row]
        members = by_pid[begin[row] : end[row]]
        relevant = np.empty(len(members), np.int64)
        count = 0
        for member in members:
            if same_camera and gallery_cams[member] == query_cams[row]:
                line[member] = -np.inf
            else:
                relevant[count] = member
                count += 1
        n_relevant[row] = count
        if count == 0:
            continue
        ranks = np.empty(count, np.int64)
        for i in range(count):
            place = relevant[i]
            own = line[place]
            before = 0
            for j in range(place):  # an equal score counts where it stands earlier: the stable order
                before += line[j] >= own
            for j in range(place + 1, size):
                before += line[j] > own
            ranks[i] = before + 1
        ranks.sort()
        total = 0.0
        for i in range(count):
            total += (i + 1) / ranks[i]
        ap[row] = total / count
        inp[row] = count / ranks[count - 1]
        first_hit[row] = ranks[0]


@compiled
def top_rows(scores, index, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write the best k columns of each row, best first, equal scores in column order; scores of -inf never count.

    index: int64 [b, k], left at its filling where fewer than k count. value: float32 [b, k], likewise.
    """
    size, k = scores.shape[1], index.shape[1]
    step = 64
    for row in range(scores.shape[0]):
        line, where, best = scores[row], index[row], value[row]
        filled = 0
        floor = np.float32(-np.inf)
        for start in range(0, size, step):
            stop = min(start + step, size)
            above = 0
            for j in range(start, stop):  # vectorised; nearly every group ends here
                above += line[j] > floor
            if above == 0:
                continue
            for j in range(start, stop):
                score = line[j]
                if not score > floor:
                    continue
                slot = min(filled, k - 1)
                while slot > 0 and best[slot - 1] < score:
                    best[slot] = best[slot - 1]
                    where[slot] = where[slot - 1]
                    slot -= 1
                best[slot] = score
                where[slot] = j
                filled = min(filled + 1, k)
                if filled == k:
                    floor = best[k - 1]
