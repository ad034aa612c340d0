"""The evaluation computes the CMC, mAP and distances of the public CLIP-ReID (utils/metrics.py, utils/reranking.py).

The golden file and its recipe are those of test_reid_parity.py. Equal scores are the one deliberate difference: the
public code sorts them as they come, we keep gallery order; the features here have none.
"""

import numpy as np
import pytest
import torch

from reid.config.evaluate import RerankConfig
from reid.ranking.metrics import evaluate_ranking
from reid.ranking.rerank import rerank_blocks
from reid.ranking.similarity import FeatureRows, similarity_blocks
from tests.helpers.parity_golden import GOLDEN, same
from tools.parity_peer import world

RERANK = RerankConfig(**world.RERANK)


@pytest.fixture(scope="module")
def sides():
    """Features, identities and cameras, each for the queries and for the gallery."""
    rows = world.gallery()
    return [part for x in (rows.features, rows.pids, rows.camids) for part in (x[: rows.queries], x[rows.queries :])]


@pytest.mark.parametrize(("rerank", "name"), [(None, "plain"), (RERANK, "reranked")])
def test_cmc_and_map_are_the_same(sides, rerank, name):
    golden, got = GOLDEN["evaluation"][name], evaluate_ranking(*sides, rerank=rerank)
    assert got.n_skipped == 3
    assert got.mAP == pytest.approx(golden["mAP"], abs=1e-6)
    np.testing.assert_allclose(got.cmc, golden["cmc"], atol=1e-6)


def test_the_public_half_precision_moves_re_ranking_a_little(sides):
    assert evaluate_ranking(*sides, rerank=RERANK).mAP == pytest.approx(
        GOLDEN["evaluation"]["reranked_half"]["mAP"], abs=1e-3
    )


@pytest.mark.parametrize("name", ["plain", "reranked"])
def test_distances_are_the_same(sides, name):
    queries, gallery = FeatureRows(sides[0], "query"), FeatureRows(sides[1], "gallery")
    if name == "plain":  # squared Euclidean distances of unit vectors
        blocks = [2 - 2 * torch.from_numpy(scores.copy()) for _, scores in similarity_blocks(queries, gallery)]
    else:
        blocks = [torch.from_numpy(scores.copy()) for _, scores in rerank_blocks(queries, gallery, RERANK)]
    same(torch.cat(blocks)[:, : len(gallery)], GOLDEN["evaluation"][name]["distances"])
