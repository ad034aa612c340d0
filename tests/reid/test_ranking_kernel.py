"""The kernels of ranking at the edges of their chunks and groups, against a stable sort, and the slices of threads."""

import threading

import numpy as np
import pytest
import torch

from reid.ranking import kernel as ranking_kernel
from reid.ranking.kernel import compiled, count_rows, finish_rows, run_on_slices, top_rows


@pytest.fixture
def threads():
    """Return the function that sets torch's threads, and restore their number afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "rows", "expected"),
    [
        (1, 5, [(0, 5)]),
        (2, 5, [(0, 2), (2, 5)]),
        (3, 7, [(0, 2), (2, 4), (4, 7)]),
        (4, 2, [(0, 1), (1, 2)]),
        (4, 1, [(0, 1)]),
        (4, 0, [(0, 0)]),
    ],
)
def test_slices_cover_the_rows_once_in_separate_threads(threads, count, rows, expected):
    threads(count)
    calls = []
    run_on_slices(rows, lambda part: calls.append(((part.start, part.stop), threading.current_thread())))
    assert sorted(place for place, _ in calls) == expected
    outside = [thread for _, thread in calls if thread is not threading.current_thread()]
    assert len(outside) == (len(expected) if len(expected) > 1 else 0)


def test_an_error_in_a_slice_is_raised(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        run_on_slices(4, lambda part: 1 // part.start)


def ranked(scores, relevant, left_out=(), width=None):
    """Return the results for one query whose identity has the images `relevant` and `left_out`, by tiles of `width`."""
    line = np.array([scores], np.float32)
    members = np.array(sorted({*relevant, *left_out}), np.int32)
    cams = np.zeros(line.shape[1], np.int64)
    cams[list(left_out)] = 1
    ends = np.array([0], np.int64), np.array([len(members)], np.int64)
    starts, before = np.array([0, len(members)]), np.zeros(len(members), np.int64)
    found = np.full(len(members), np.nan, np.float32)
    bounds = (
        found if width is None else np.where(np.isin(members, list(left_out)), np.float32(np.nan), line[0, members])
    )
    for first in range(0, line.shape[1], width or line.shape[1]):
        tile = np.ascontiguousarray(line[:, first : first + (width or line.shape[1])])
        count_rows(tile, first, members, *ends, cams, np.array([1], np.int64), True, starts, bounds, found, before)
        line[:, first : first + tile.shape[1]] = tile
    np.testing.assert_array_equal(found, bounds)
    floats, ints = np.zeros((2, 1)), np.zeros((2, 1), np.int64)
    finish_rows(starts, found, before, *floats, *ints)
    return line[0], (floats[0, 0], floats[1, 0], int(ints[0, 0]), int(ints[1, 0]))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 2047, 2048, 2049, 4096, 5000])
@pytest.mark.parametrize("values", [1, 2, 5, 1000])
@pytest.mark.parametrize("width", [None, 64, 2048])
def test_ranks_at_the_edges_of_chunks_and_tiles_equal_those_of_a_stable_sort(size, values, width):
    rng = np.random.default_rng(size * values)
    for _ in range(8):
        scores = rng.integers(0, values, size).astype(np.float32)
        edges = [place for place in (0, 1, 2046, 2047, 2048, 2049, 4095, 4096, size - 1) if place < size]
        chosen = sorted({*rng.choice(edges, min(len(edges), 4)), *rng.integers(0, size, 3)})
        left_out = [place for place in set(rng.integers(0, size, 2).tolist()) if place not in chosen]
        line, (ap, inp, first, count) = ranked(scores, chosen, left_out, width)
        assert (line[left_out] == -np.inf).all()
        order = np.argsort(-line, kind="stable")
        hits = np.flatnonzero(np.isin(order, chosen)) + 1
        assert (first, count) == (hits[0], len(chosen))
        assert inp == pytest.approx(len(hits) / hits[-1], rel=1e-12)
        assert ap == pytest.approx(np.mean(np.arange(1, len(hits) + 1) / hits), rel=1e-12)


def test_a_query_without_relevant_images_is_not_changed():
    line, found = ranked([3.0, 2.0, 1.0], [], [1])
    assert line.tolist() == [3.0, -np.inf, 1.0]
    assert found == (0.0, 0.0, 0, 0)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 127, 128, 129, 640, 1001])
@pytest.mark.parametrize("k", [1, 2, 3, 10, 64, 200])
@pytest.mark.parametrize("values", [1, 3, 10**6])
@pytest.mark.parametrize("width", [64, 192, 1001])
def test_the_best_few_of_all_tiles_equal_those_of_a_stable_sort(size, k, values, width):
    rng = np.random.default_rng(size + k + values)
    scores = -rng.integers(0, values, (12, size)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[0] = -np.inf
    scores[1] = np.sort(scores[1])  # each score better than all before it
    scores[2] = np.sort(scores[2])[::-1]
    index, value = np.full((12, k), -1, np.int64), np.full((12, k), np.nan, np.float32)
    filled = np.zeros(12, np.int64)
    for first in range(0, size, width):
        top_rows(np.ascontiguousarray(scores[:, first : first + width]), first, filled, index, value)
    for line, found, best in zip(scores, index, value, strict=True):
        order = [place for place in np.argsort(-line, kind="stable") if line[place] > -np.inf][:k]
        assert found.tolist() == order + [-1] * (k - len(order))
        np.testing.assert_array_equal(best[: len(order)], line[order])
        assert np.isnan(best[len(order) :]).all()
    assert filled.tolist() == (index >= 0).sum(axis=1).tolist()


def _one(values):
    return values + 1


def test_kernels_release_the_lock_and_are_cached_if_possible(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache") and refused:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(ranking_kernel, "njit", njit)
    for refused in (False, True):
        asked.clear()
        function, options = compiled(_one)
        assert function is _one
        assert options == ({"nogil": True} if refused else {"nogil": True, "cache": True})
        assert asked[0] == {"nogil": True, "cache": True}
