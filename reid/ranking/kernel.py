"""Compiled loops of ranking: count the images before each relevant one, and keep the nearest. No row is sorted.

numba compiles them on first use (about a second; cached beside the source if that folder is writable). The loops
release the interpreter lock and run on slices of rows in a thread pool, not in numba's threads, whose default layer
must not be entered by two threads at once.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numba import njit

_CHUNK: Final = 2048
_GROUP: Final = 64


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, compiled on first use without the interpreter lock, and cached on disk if possible."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable folder for the cache (a read-only install without a home)
        return njit(nogil=True)(function)


def run_on_slices(rows: int, work: Callable[[slice], None]) -> None:
    """Call `work` on slices that together cover `rows` rows, one per thread that torch would use."""
    threads = max(1, min(torch.get_num_threads(), rows))
    bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
    slices = [slice(a, b) for a, b in pairwise(bounds)]
    if threads == 1:
        work(slices[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass


# Counting in 32 bits, by index, lets the compiler vectorize the loops below: 40 scores per nanosecond, compared with 2
# to 20 for the plain `count += score > bound`.
@njit(nogil=True)
def _count_above(line, bound):
    count = np.int32(0)
    for i in range(len(line)):
        if line[i] > bound:
            count = np.int32(count + 1)
    return count


@njit(nogil=True)
def _count_from(line, bound):
    count = np.int32(0)
    for i in range(len(line)):
        if line[i] >= bound:
            count = np.int32(count + 1)
    return count


@njit(nogil=True, fastmath={"reassoc", "nnan", "nsz"})
def _largest(line):
    largest = line[0]
    for score in line:
        largest = max(score, largest)
    return largest


@njit(nogil=True)
def _ranks(line, relevant):
    """Return the sorted 1-based ranks of the positions `relevant` (ascending) in `line`."""
    before = np.zeros(len(relevant), np.int64)
    for start in range(0, len(line), _CHUNK):  # a chunk stays in the L1 cache while all bounds are counted
        chunk = line[start : start + _CHUNK]
        for i in range(len(relevant)):
            bound = line[relevant[i]]
            own = relevant[i] - start
            if own >= len(chunk):  # equal scores rank in gallery order, so earlier ones count
                before[i] += _count_from(chunk, bound)
            elif own < 0:
                before[i] += _count_above(chunk, bound)
            else:
                before[i] += _count_from(chunk[:own], bound) + _count_above(chunk[own + 1 :], bound)
    before.sort()
    return before + 1


@compiled
def rank_rows(scores, by_pid, begin, end, gallery_cams, query_cams, same_camera, ap, inp, first_hit, n_relevant):
    """Fill in the results of each query row; sets `scores` [b, W] to -inf where the gallery image does not count.

    by_pid: gallery positions sorted by identity; those of the query's identity are by_pid[begin:end].
    same_camera: exclude images of the query's identity from its own camera.
    ap, inp, first_hit (1-based), n_relevant: results, [b]; where n_relevant is 0 the others are not written.
    """
    for row in range(len(scores)):
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
        ranks = _ranks(line, relevant[:count])
        total = 0.0
        for i in range(count):
            total += (i + 1) / ranks[i]
        ap[row] = total / count
        inp[row] = count / ranks[count - 1]
        first_hit[row] = ranks[0]


@compiled
def top_rows(scores, index, value):
    """Write the best k columns of each row, best first, equal scores in column order; scores of -inf never count.

    index: int64 [b, k]; value: float32 [b, k]. Both keep their initial values where fewer than k columns count.
    """
    size, k = scores.shape[1], index.shape[1]
    groups = size // _GROUP + (size % _GROUP > 0)
    peaks = np.empty(groups, np.float32)
    for row in range(len(scores)):
        line, where, best = scores[row], index[row], value[row]
        for group in range(groups):
            peaks[group] = _largest(line[group * _GROUP : (group + 1) * _GROUP])
        # At least k scores reach the k-th largest peak, so a group with a lower peak contains none of the best k.
        floor = np.partition(peaks, groups - k)[groups - k] if groups > k else np.float32(-np.inf)
        filled = 0
        for group in range(groups):
            if peaks[group] < floor:
                continue
            for j in range(group * _GROUP, min((group + 1) * _GROUP, size)):
                score = line[j]
                if score < floor or score == -np.inf or (filled == k and score <= best[k - 1]):
                    continue
                slot = min(filled, k - 1)
                while slot > 0 and best[slot - 1] < score:
                    best[slot] = best[slot - 1]
                    where[slot] = where[slot - 1]
                    slot -= 1
                best[slot] = score
                where[slot] = j
                filled = min(filled + 1, k)
