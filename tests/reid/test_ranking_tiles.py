"""Ranking in tiles of the gallery: equal to the bit to whole rows, against exact integers, and read once per block."""

import numpy as np
import pytest
import torch

from data.errors import DataError
from reid.ranking.metrics import evaluate_by_camera, evaluate_ranking
from reid.ranking.ranker import Block, Labels, Ranker, bounds_of, rank_features
from reid.ranking.similarity import TILE, FeatureRows, TileShape, similarity_tiles
from tests.helpers.rankings import RankingWorld, gaussian_world

_TILES = 1
"""Bytes for a block: the smallest, so that tiles are 64 x 64."""


def world_of(seed, q, g, *, people=5, tied=False):
    """Return a world with junk, unknown cameras, and queries without a match; if `tied`, with few distinct scores."""
    rng = np.random.default_rng(seed)

    def rows(count):
        values = rng.choice([-1, 1], (count, 16)) if tied else rng.standard_normal((count, 16))
        return values.astype(np.float32)

    query, gallery = rows(q), rows(g)
    if tied:
        gallery = gallery[rng.integers(0, g, g)]
    pids = rng.integers(1, people + 2, q), rng.integers(-1, people + 1, g)
    return RankingWorld(query, gallery, *pids, rng.integers(-1, 3, q), rng.integers(-1, 3, g))


def assert_equal(one, other):
    for name in one.__dataclass_fields__:
        first, second = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        assert (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes()), name


def by_hand(world, exclude, k):
    """Return query -> (ranks of its relevant images, first k places), sorted by exact integer scores."""
    scores = world.query_features.astype(np.int64) @ world.gallery_features.astype(np.int64).T
    found = {}
    for row, (pid, camera) in enumerate(zip(world.query_pids, world.query_camids, strict=True)):
        same = world.gallery_pids == pid
        out = same & (world.gallery_camids == camera) & (camera >= 0) & (exclude == "same_camera")
        order = np.argsort(-scores[row], kind="stable")
        order = order[~(out | (world.gallery_pids == -1))[order]]
        if same[order].any():
            found[row] = (np.flatnonzero(same[order]) + 1, (order[:k].tolist() + [-1] * k)[:k])
    return found


@pytest.mark.parametrize("g", [1, 63, 64, 65, 127, 128, 129, 640])
@pytest.mark.parametrize("q", [1, 64, 65, 130])
@pytest.mark.parametrize("tied", [True, False])
def test_results_equal_those_of_whole_rows_to_the_bit(g, q, tied):
    for seed, (exclude, people) in enumerate([("same_camera", 5), ("none", 60), ("same_camera", 1)]):
        world = world_of(seed, q, g, people=people, tied=tied)
        pids, cams = world.gallery_pids.copy(), world.gallery_camids.copy()
        pids[-1], cams[-1] = world.query_pids[0], -1  # at least one match
        world = world._replace(gallery_pids=pids, gallery_camids=cams)
        for k in (1, 50, 200):
            whole = evaluate_ranking(*world, top_k=k, exclude=exclude)
            for block_bytes in (_TILES, 1 << 17):
                assert_equal(evaluate_ranking(*world, top_k=k, exclude=exclude, block_bytes=block_bytes), whole)


@pytest.mark.parametrize("g", [64, 129, 640])
@pytest.mark.parametrize("exclude", ["same_camera", "none"])
def test_ties_across_tiles_rank_in_gallery_order(g, exclude):
    world = world_of(g, 70, g, tied=True)
    expected = by_hand(world, exclude, 20)
    ranking = evaluate_ranking(*world, top_k=20, exclude=exclude, block_bytes=_TILES)
    assert ranking.query_index.tolist() == sorted(expected)
    for row, query in enumerate(ranking.query_index.tolist()):
        ranks, top = expected[query]
        assert (ranking.first_hit[row], ranking.n_relevant[row]) == (ranks[0], len(ranks))
        assert ranking.inp[row] == pytest.approx(len(ranks) / ranks[-1], rel=1e-12)
        assert ranking.ap[row] == pytest.approx(np.mean(np.arange(1, len(ranks) + 1) / ranks), rel=1e-12)
        assert ranking.top_index[row].tolist() == top


def test_two_threads_and_wide_features_give_the_same():
    world = gaussian_world(seed=3, q=150, g=700, dim=512)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_equal(evaluate_ranking(*world, block_bytes=_TILES), evaluate_ranking(*world))
    finally:
        torch.set_num_threads(before)


def test_each_camera_in_tiles_equals_whole_rows():
    world = world_of(8, 130, 400, people=9)
    tiles, whole = (evaluate_by_camera(*world, block_bytes=size) for size in (_TILES, 1 << 28))
    assert len(tiles) == len(whole) == 4
    for one, other in zip(tiles, whole, strict=True):
        assert_equal(one, other)


def ranked_with(labels, features, bounds):
    """Return the ranker after the tiles of its only block, and how often they were counted."""
    ranker = Ranker(labels, top_k=5, same_camera=True)
    queries, gallery = features
    padded = queries.block(0, len(queries))
    given = bounds_of(ranker, slice(0, len(queries)), padded, gallery)
    block = Block(ranker, slice(0, len(queries)), bounds(given))
    for passes in (1, 2, 3):
        for tile in similarity_tiles(padded, len(queries), gallery, TileShape(TILE, TILE)):
            block.add(*tile)
        if block.finish():
            return ranker, passes
    raise AssertionError("bounds found in the tiles were not exact")


def test_bounds_that_are_not_exact_are_found_in_the_tiles_and_counted_again():
    world = world_of(2, 100, 300, people=7)
    labels = Labels(world.query_pids, world.gallery_pids + 2, world.query_camids, world.gallery_camids)
    features = FeatureRows(world.query_features, "query"), FeatureRows(world.gallery_features, "gallery")
    exact, passes = ranked_with(labels, features, lambda bounds: bounds)
    assert passes == 1
    whole = Ranker(labels, top_k=5, same_camera=True)
    rank_features([whole], *features)
    assert_equal(exact.table, whole.table)
    for wrong in (
        lambda bounds: np.nextafter(bounds, np.float32(2)),
        lambda bounds: np.full_like(bounds, np.nan),
        np.zeros_like,
    ):
        again, passes = ranked_with(labels, features, wrong)
        assert passes == 2
        assert_equal(again.table, exact.table)


def test_products_that_cannot_be_repeated_are_an_error_and_not_an_endless_loop(monkeypatch):
    multiply, rng = torch.mm, np.random.default_rng(0)

    def noisy(*factors, **options):
        found = multiply(*factors, **options)
        return found.mul_(1 + 1e-3 * rng.random())

    monkeypatch.setattr("torch.mm", noisy)
    with pytest.raises(DataError, match="gives other numbers each time"):
        evaluate_ranking(*world_of(4, 10, 200), block_bytes=_TILES)


def test_the_gallery_is_read_once_per_block_of_queries(monkeypatch):
    read = []
    block = FeatureRows.block

    def counted(self, start, stop):
        read.append((self.name, start, stop))
        return block(self, start, stop)

    monkeypatch.setattr(FeatureRows, "block", counted)
    world = gaussian_world(q=150, g=200, dim=2)
    labels = Labels(*world[2:])._replace(gallery_pids=np.arange(200) + 50)  # no members
    for rows, block_bytes in ((64, 16 * TILE), (128, 32 * TILE), (150, 48 * TILE)):
        read.clear()
        ranker = Ranker(labels, top_k=1, same_camera=True)
        rank_features([ranker], FeatureRows(world[0], "query"), FeatureRows(world[1], "gallery"), block_bytes)
        starts = [first for name, first, _ in read if name == "query"]
        assert starts == list(range(0, 150, rows))
        assert [first for name, first, _ in read if name == "gallery"] == [0, 64, 128, 192] * len(starts)


def test_many_members_make_blocks_smaller():
    """Each query has 200 members of 16 bytes, so that 64 queries need 204,800 bytes."""
    ranker = Ranker(Labels(*np.zeros((4, 200), np.int64)), top_k=1, same_camera=False)
    rows = np.ones((200, 2), np.float32)
    rank_features([ranker], FeatureRows(rows, "query"), FeatureRows(rows, "gallery"), 1)
    assert ranker.table.first_hit.tolist() == [1] * 200
    assert ranker.table.n_relevant.tolist() == [200] * 200
    assert (ranker.table.ap == 1).all()


@pytest.mark.parametrize(
    ("tile_bytes", "rows", "shape"),
    [(0, 900, (64, 64)), (1 << 16, 900, (64, 256)), (64 << 20, 10**6, (1024, 8192)), (64 << 20, 100, (1024, 128))],
)
def test_a_tile_takes_no_more_than_its_bytes(tile_bytes, rows, shape):
    gallery = FeatureRows(np.broadcast_to(np.float32(1), (rows, 2)), "gallery")
    found = TileShape.within(tile_bytes, gallery)
    assert found == shape
    assert 4 * found.height * found.width <= max(tile_bytes, 4 * TILE * TILE)


def test_bad_features_are_refused_as_for_whole_rows():
    world = world_of(0, 5, 300, people=2)
    world = world._replace(gallery_pids=np.abs(world.gallery_pids))
    gallery = world.gallery_features.copy()
    gallery[[200, 260], 1] = np.inf, np.nan
    with pytest.raises(DataError) as error:
        evaluate_ranking(*world._replace(gallery_features=gallery), exclude="none", block_bytes=_TILES)
    assert "gallery features contain NaN or infinity, first in row 200;" in str(error.value)
    with pytest.raises(DataError, match="query features have 16 dimensions and gallery 8"):
        evaluate_ranking(*world._replace(gallery_features=gallery[:, :8]), exclude="none", block_bytes=_TILES)
