"""Sparse re-ranking in blocks against a dense implementation of the paper (Zhong et al., CVPR 2017)."""

from functools import cache

import numpy as np
import pytest
import torch

from data.errors import DataError
from reid.config.evaluate import RerankConfig
from reid.ranking.metrics import evaluate_ranking
from reid.ranking.rerank import rerank_blocks
from reid.ranking.similarity import FeatureRows


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense(query, gallery, config):
    """Re-rank with whole N x N matrices and Python sets; float64."""
    both = np.concatenate([unit(query.astype(np.float64)), unit(gallery.astype(np.float64))])
    size = len(both)
    squared = np.array([[np.sum((a - b) ** 2) for b in both] for a in both])
    distance = squared / squared.max(axis=1, keepdims=True)
    order = np.argsort(squared, axis=1, kind="stable")

    @cache
    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    encoded = np.zeros((size, size))
    for i in range(size):
        members = reciprocal(i, config.k1)
        expanded = set(members)
        for j in members:
            candidate = reciprocal(j, int(np.around(config.k1 / 2)))
            if len(candidate & members) > 2 / 3 * len(candidate):
                expanded |= candidate
        for j in expanded:
            encoded[i, j] = np.exp(-distance[i, j])
        encoded[i] /= encoded[i].sum()
    if config.k2 > 1:
        encoded = np.stack([encoded[order[i, : config.k2]].mean(axis=0) for i in range(size)])
    result = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            a, b = encoded[i], encoded[len(query) + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            result[i, j] = (1 - config.weight) * jaccard + config.weight * distance[i, len(query) + j]
    return result


def world(*, seed=0, q=40, g=150, dim=24, people=12, noise=0.9):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((people, dim))
    q_pids, g_pids = rng.integers(0, people, q), rng.integers(0, people, g)
    query = (centers[q_pids] + noise * rng.standard_normal((q, dim))).astype(np.float32)
    gallery = (centers[g_pids] + noise * rng.standard_normal((g, dim))).astype(np.float32)
    return query, gallery, q_pids, g_pids, rng.integers(0, 3, q), rng.integers(0, 3, g)


def sparse(query, gallery, config, block_bytes=1 << 28):
    blocks = rerank_blocks(FeatureRows(query, "query"), FeatureRows(gallery, "gallery"), config, block_bytes)
    return np.concatenate([block[:, : len(gallery)].copy() for _, block in blocks])


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (7, 3, 0.5), (5, 1, 0.0), (1, 1, 1.0), (50, 15, 0.3), (300, 200, 0.3)]
)
def test_equals_the_dense_reference(k1, k2, weight):
    query, gallery, *_ = world(seed=k1)
    config = RerankConfig(k1=k1, k2=k2, weight=weight)
    np.testing.assert_allclose(sparse(query, gallery, config), dense(query, gallery, config), atol=2e-5)


def test_distances_that_are_all_below_one_are_divided_by_their_largest():
    """Images of a narrow domain lie close together; a floor of the divisor must not flatten them."""
    query, gallery, *_ = world(seed=3)
    query, gallery = query + 4, gallery + 4
    both = np.concatenate([unit(query), unit(gallery)])
    assert 0.01 < (2 - 2 * both @ both.T).max() < 0.9
    config = RerankConfig(k1=7, k2=3, weight=0.5)
    np.testing.assert_allclose(sparse(query, gallery, config), dense(query, gallery, config), atol=2e-4)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (3, 2), (2, 1)])
def test_sets_smaller_than_the_neighborhoods(sizes):
    query, gallery, *_ = world(q=sizes[0], g=sizes[1])
    config = RerankConfig()
    np.testing.assert_allclose(sparse(query, gallery, config), dense(query, gallery, config), atol=2e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_result_depends_on_blocks_or_threads(threads):
    query, gallery, *_ = world(q=200, g=400)
    expected = sparse(query, gallery, RerankConfig())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = sparse(query, gallery, RerankConfig(), block_bytes=1)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(got, expected)


def test_no_result_depends_on_the_order_of_the_images():
    query, gallery, *_ = world()
    rng = np.random.default_rng(1)
    q_order, g_order = rng.permutation(len(query)), rng.permutation(len(gallery))
    expected = sparse(query, gallery, RerankConfig())
    got = sparse(query[q_order], gallery[g_order], RerankConfig())
    np.testing.assert_allclose(got, expected[np.ix_(q_order, g_order)], atol=1e-6)


def test_many_copies_of_one_image_do_not_break_it():
    query, gallery, *_ = world(q=5, g=60)
    gallery[:40] = gallery[0]
    result = sparse(query, gallery, RerankConfig(k1=5, k2=3))
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[:, :40].std(axis=1), 0, atol=0.2)
    same = sparse(np.ones((2, 4)), np.ones((30, 4)), RerankConfig(k1=5, k2=3))
    assert np.isfinite(same).all()


def test_ranking_with_it_follows_the_dense_distances_without_junk():
    query, gallery, q_pids, g_pids, q_cams, g_cams = world(noise=1.5)
    g_pids = g_pids.copy()
    g_pids[::7] = -1
    keep = g_pids != -1
    config = RerankConfig()
    distances = dense(query, gallery[keep], config)
    result = evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams, rerank=config, top_k=10)
    aps = []
    for i in result.query_index:
        counts = ~((g_pids[keep] == q_pids[i]) & (g_cams[keep] == q_cams[i]))
        order = np.argsort(distances[i][counts], kind="stable")
        hits = (g_pids[keep][counts][order] == q_pids[i]).nonzero()[0] + 1
        aps.append(np.mean(np.arange(1, len(hits) + 1) / hits))
        near = np.flatnonzero(keep)[counts][order][:10]
        assert result.top_index[len(aps) - 1].tolist() == near.tolist()
        scores = 1 - distances[i][counts][order][:10]
        np.testing.assert_allclose(result.top_score[len(aps) - 1], scores, atol=2e-5)
    np.testing.assert_allclose(result.ap, aps, rtol=1e-9)
    plain = evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams)
    assert result.mAP > plain.mAP  # clusters exist, so it helps


def public(query, gallery, k1, k2, weight):
    """The steps of the authors' public code (re_ranking in person-re-ranking), matrix by matrix, in float64.

    Equal distances stand in the order of the images; images that coincide have a distance of exactly zero.
    """
    both = np.concatenate([query, gallery]).astype(np.float64)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    squared = ((both[:, None] - both[None]) ** 2).sum(axis=2)
    original = (squared / squared.max(axis=0)).T
    rank = np.argsort(squared, axis=1, kind="stable")
    v = np.zeros_like(original)

    def reciprocal(i, k):
        forward = rank[i, : k + 1]
        return forward[np.where(rank[forward, : k + 1] == i)[0]]

    for i in range(len(both)):
        members = expansion = reciprocal(i, k1)
        for candidate in members:
            found = reciprocal(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(found, members)) > 2 / 3 * len(found):
                expansion = np.append(expansion, found)
        expansion = np.unique(expansion)
        weights = np.exp(-original[i, expansion])
        v[i, expansion] = weights / weights.sum()
    if k2 != 1:
        v = np.stack([v[rank[i, :k2]].mean(axis=0) for i in range(len(both))])
    jaccard = np.zeros((len(query), len(both)))
    for i in range(len(query)):
        least = np.minimum(v[i], v).sum(axis=1)
        jaccard[i] = 1 - least / (2 - least)
    final = jaccard * (1 - weight) + original[: len(query)] * weight
    return final[:, len(query) :]


def lattice_world(seed, q, g):
    """Rows of +-1 in 16 dimensions, some of them twice: cosines are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.array([-1, 1], np.float32), (q + g, 16))
    rows[rng.integers(0, q + g, (q + g) // 4)] = rows[0]
    return rows[:q], rows[q:]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("k1", "k2"),
    [
        (20, 6),
        (5, 20),
        (5, 6),
        (5, 7),
        (1, 1),
        (1, 2),
        (1, 40),
        (3, 10**6),
        (59, 60),
        (60, 61),
        (10**6, 1),
        (10**9, 10**9),
    ],
)
@pytest.mark.parametrize(("q", "g"), [(10, 50), (1, 1), (2, 5), (40, 3)])
def test_equals_the_public_code_for_any_sizes(q, g, k1, k2, weight):
    config = RerankConfig(k1=k1, k2=k2, weight=weight)
    smooth, *_ = [world(seed=7, q=q, g=g, dim=8, people=4)[:2]]
    ties = lattice_world(q + g, q, g)
    for name, (query, gallery) in {"smooth": smooth, "ties": ties}.items():
        with np.errstate(invalid="ignore"):
            expected = public(query, gallery, k1, k2, weight)
        if not np.isfinite(expected).all():  # the public code divides by zero where all images are the same
            continue
        np.testing.assert_allclose(sparse(query, gallery, config), expected, atol=2e-5, err_msg=name)


def test_more_neighbors_are_averaged_than_are_reciprocal():
    query, gallery, *_ = world(seed=1)
    few, many = (sparse(query, gallery, RerankConfig(k1=5, k2=k2)) for k2 in (6, 20))
    assert np.abs(few - many).max() > 0.1


NO_DIRECTION = (
    r"^row 31 of the gallery features is all zeros and has no direction, which re-ranking needs: leave the image out, "
    r"or set evaluate\.rerank=null$"
)


def test_features_of_zeros_are_named():
    query, gallery, q_pids, g_pids, q_cams, g_cams = world()
    gallery[31] = 0
    g_pids[5] = -1
    with pytest.raises(DataError, match=NO_DIRECTION):
        evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams, rerank=RerankConfig())


def test_settings_are_checked():
    for bad in ({"k1": 0}, {"k2": 0}, {"weight": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RerankConfig(**bad)
