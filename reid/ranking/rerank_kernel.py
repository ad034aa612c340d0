"""Compiled loops of k-reciprocal re-ranking on sparse rows. `reid.ranking.rerank` describes the algorithm.

A sparse matrix is three arrays: row i has the columns ``index[start[i]:start[i + 1]]`` with values ``value[...]``.
Kernels that create a matrix run twice: first to count the entries of each row, then to write them.
"""
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

from __future__ import annotations

import numpy as np
from numba import njit

from reid.ranking.kernel import compiled


@njit(nogil=True, fastmath={"reassoc", "contract"})
def _dot(a, b):
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def reciprocal_rows(neighbors, k, rows, found, count):
    """Write the k-reciprocal neighbors of each of `rows`: those of its first k + 1 neighbors that have it among theirs.

    neighbors: [N, >= k + 1], nearest first, the row itself included. found: [len(rows), k + 1]; count: [len(rows)].
    """
    for i in range(len(rows)):
        me = rows[i]
        n = 0
        for other in neighbors[me, : k + 1]:
            for back in neighbors[other, : k + 1]:
                if back == me:
                    found[i, n] = other
                    n += 1
                    break
        count[i] = n


@compiled
def expand_rows(full, full_count, half, half_count, rows, start, index):
    """Expand each row's reciprocal set by its members' half-sized sets of which more than two thirds lie in it.

    full, half: reciprocal sets of all N images. start: [len(rows) + 1] offsets into `index`; if `index` is empty, the
    sizes are written to start[1:] instead.
    """
    mark = np.full(len(full), -1, np.int64)  # mark[j] == 2 i: j is in row i's set; 2 i + 1: j was added to it
    for i in range(len(rows)):
        me = rows[i]
        members = full[me, : full_count[me]]
        for j in members:
            mark[j] = 2 * i
        n = len(members)
        if len(index):
            index[start[i] : start[i] + n] = members
        for j in members:
            candidate = half[j, : half_count[j]]
            common = 0
            for other in candidate:
                common += mark[other] == 2 * i
            if 3 * common <= 2 * len(candidate):
                continue
            for other in candidate:
                if mark[other] < 2 * i:
                    mark[other] = 2 * i + 1
                    if len(index):
                        index[start[i] + n] = other
                    n += 1
        if not len(index):
            start[i + 1] = n


@compiled
def weigh_rows(features, farthest, rows, start, index, value):
    """Write exp(-d) of every entry, scaled to sum to one per row; d is the squared distance over the row's largest."""
    for i in range(len(rows)):
        me = rows[i]
        total = np.float32(0)
        for entry in range(start[i], start[i + 1]):
            squared = max(np.float32(0), 2 - 2 * _dot(features[me], features[index[entry]]))
            value[entry] = np.exp(-squared / farthest[me])
            total += value[entry]
        for entry in range(start[i], start[i + 1]):
            value[entry] /= total


@compiled
def average_rows(neighbors, k, rows, start, index, value, out_start, out_index, out_value):
    """Average each row of a sparse matrix over the row's first k neighbors (itself included).

    If `out_index` is empty, the sizes are written to out_start[1:] instead.
    """
    size = len(neighbors)
    total = np.zeros(size, np.float32)
    seen = np.full(size, -1, np.int64)
    touched = np.empty(size, np.int64)
    for i in range(len(rows)):
        n = 0
        for other in neighbors[rows[i], :k]:
            for entry in range(start[other], start[other + 1]):
                column = index[entry]
                if seen[column] != i:
                    seen[column] = i
                    touched[n] = column
                    total[column] = 0
                    n += 1
                total[column] += value[entry]
        if not len(out_index):
            out_start[i + 1] = n
            continue
        for place in range(n):
            out_index[out_start[i] + place] = touched[place]
            out_value[out_start[i] + place] = total[touched[place]] / k


@compiled
def columns_of(first_row, start, index, value, column_start, row, column_value):
    """Turn the rows from `first_row` on into columns; row numbers count from `first_row`.

    column_start: [N + 1], the offsets of the columns; on return each has moved to the start of the next column.
    """
    for i in range(first_row, len(start) - 1):
        for entry in range(start[i], start[i + 1]):
            place = column_start[index[entry]]
            row[place] = i - first_row
            column_value[place] = value[entry]
            column_start[index[entry]] = place + 1


@compiled
def jaccard_rows(rows, start, index, value, column_start, column_row, column_value, share, farthest, scores):
    """Turn similarities `scores` [b, W] of `rows` into re-ranked distances, in place.

    Distance = (1 - share) * Jaccard + share * squared distance / the row's largest. The Jaccard distance of two rows
    that sum to one is 1 - m / (2 - m), where m is the sum of the entry-wise minima.
    """
    size = scores.shape[1]
    minima = np.empty(size, np.float32)
    for i in range(len(rows)):
        me = rows[i]
        minima[:] = 0
        for entry in range(start[me], start[me + 1]):
            own = value[entry]
            column = index[entry]
            for place in range(column_start[column], column_start[column + 1]):
                minima[column_row[place]] += min(own, column_value[place])
        line = scores[i]
        scale = share / farthest[me]
        for j in range(size):
            jaccard = 1 - minima[j] / (2 - minima[j])
            line[j] = (1 - share) * jaccard + scale * max(np.float32(0), 2 - 2 * line[j])
