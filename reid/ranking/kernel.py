"""Compiled loops of ranking: count the images before each relevant one, and keep the nearest, tile by tile. No row is
sorted.

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
def _count_before(line, first, members, bounds, before):
    """Add the columns of `line` that rank before each member; `first` is the position of its first column."""
    for start in range(0, len(line), _CHUNK):  # a chunk stays in the L1 cache while all bounds are counted
        chunk = line[start : start + _CHUNK]
        for i in range(len(members)):
            bound = bounds[i]
            if np.isnan(bound):
                continue
            own = members[i] - first - start
            if own >= len(chunk):  # equal scores rank in gallery order, so earlier ones count
                before[i] += _count_from(chunk, bound)
            elif own < 0:
                before[i] += _count_above(chunk, bound)
            else:
                before[i] += _count_from(chunk[:own], bound) + _count_above(chunk[own + 1 :], bound)


@compiled
def count_rows(scores, first, by_pid, begin, end, gallery_cams, query_cams, same_camera, starts, bounds, found, before):
    """Count in one tile the images before each relevant one; sets `scores` to -inf where an image does not count.

    scores: the tile, [b, c]; its first column is gallery position `first`.
    by_pid: gallery positions sorted by identity; those of the query's identity are by_pid[begin:end], its members.
    same_camera: exclude members from the query's own camera.
    starts: where the entries of each query begin, one entry per member, in `bounds`, `found` and `before`.
    bounds: scores to count above; NaN where the member is excluded. It may be `found` if the tile is the whole gallery.
    found: receives the scores of the members in the tile, apart from the excluded ones.
    before: receives in addition the images of the tile that rank before each member.
    """
    for row in range(len(scores)):
        line = scores[row]
        members = by_pid[begin[row] : end[row]]
        at, until = starts[row], starts[row] + len(members)
        for i in range(len(members)):
            own = members[i] - first
            if own < 0 or own >= len(line):
                continue
            if same_camera and gallery_cams[members[i]] == query_cams[row]:
                line[own] = -np.inf
            else:
                found[at + i] = line[own]
        _count_before(line, first, members, bounds[at:until], before[at:until])


@compiled
def finish_rows(starts, found, before, ap, inp, first_hit, n_relevant):
    """Fill in the results of each query row from the counts over the whole gallery.

    starts, found, before: as in `count_rows`; starts is one longer than the rows.
    ap, inp, first_hit (1-based), n_relevant: results, [b]; where n_relevant is 0 the others are not written.
    """
    for row in range(len(ap)):
        ranks = np.empty(starts[row + 1] - starts[row], np.int64)
        count = 0
        for i in range(starts[row], starts[row + 1]):
            if not np.isnan(found[i]):
                ranks[count] = before[i] + 1
                count += 1
        n_relevant[row] = count
        if count == 0:
            continue
        ranks = ranks[:count]
        ranks.sort()
        total = 0.0
        for i in range(count):
            total += (i + 1) / ranks[i]
        ap[row] = total / count
        inp[row] = count / ranks[count - 1]
        first_hit[row] = ranks[0]


@compiled
def top_rows(scores, first, filled, index, value):
    """Merge the best columns of each row into the best k, best first, equal scores in order; -inf never counts.

    scores: a tile, [b, c]; its first column is gallery position `first`, after those of all tiles before.
    filled: int64 [b], entries of `index` and `value` in use; 0 for the first tile.
    index: int64 [b, k]; value: float32 [b, k]. Both keep their initial values where fewer than k columns count.
    """
    size, k = scores.shape[1], index.shape[1]
    groups = size // _GROUP + (size % _GROUP > 0)
    peaks = np.empty(groups, np.float32)
    for row in range(len(scores)):
        line, where, best, used = scores[row], index[row], value[row], filled[row]
        worst = best[k - 1] if used == k else np.float32(-np.inf)
        higher = 0
        for group in range(groups):
            peaks[group] = _largest(line[group * _GROUP : (group + 1) * _GROUP])
            higher += peaks[group] > worst
        # At least k scores reach the k-th largest peak, so a group with a lower peak contains none of the best k.
        floor = np.partition(peaks, groups - k)[groups - k] if higher > k else np.float32(-np.inf)
        for group in range(groups if higher else 0):
            if peaks[group] < floor or peaks[group] <= worst:
                continue
            for j in range(group * _GROUP, min((group + 1) * _GROUP, size)):
                score = line[j]
                if score < floor or score == -np.inf or (used == k and score <= best[k - 1]):
                    continue
                slot = min(used, k - 1)
                while slot > 0 and best[slot - 1] < score:
                    best[slot] = best[slot - 1]
                    where[slot] = where[slot - 1]
                    slot -= 1
                best[slot] = score
                where[slot] = first + j
                used = min(used + 1, k)
        filled[row] = used
