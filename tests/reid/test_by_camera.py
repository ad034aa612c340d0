"""Rankings per gallery camera, against the whole ranking sorted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import DataError
from reid.config.evaluate import RerankConfig
from reid.ranking.metrics import evaluate_by_camera, evaluate_ranking
from tests.helpers.rankings import gaussian_world


def by_hand(world, camera: int, exclude: str, rerank: RerankConfig | None) -> dict[int, tuple[float, float, int]]:
    """Return query -> (ap, inp, first hit) in the images of `camera`, from the order of the whole gallery."""
    whole = evaluate_ranking(*world, top_k=len(world.gallery_pids), exclude=exclude, rerank=rerank)
    found = {}
    for query, order in zip(whole.query_index.tolist(), whole.top_index, strict=True):
        here = [place for place in order[order >= 0] if world.gallery_camids[place] == camera]
        hits = [rank for rank, at in enumerate(here, 1) if world.gallery_pids[at] == world.query_pids[query]]
        if hits:
            ap = sum(n / rank for n, rank in enumerate(hits, 1)) / len(hits)
            found[query] = (ap, len(hits) / hits[-1], hits[0])
    return found


@pytest.mark.parametrize("exclude", ["same_camera", "none"])
@pytest.mark.parametrize("rerank", [None, RerankConfig(k1=6, k2=3)])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_each_camera_ranks_its_part_of_the_whole_order(exclude, rerank, block_bytes):
    world = gaussian_world(q=70, g=200, people=12)
    results = evaluate_by_camera(*world, exclude=exclude, rerank=rerank, block_bytes=block_bytes)
    assert [result.camera for result in results] == [1, 2, 3, 4]
    for result in results:
        expected = by_hand(world, result.camera, exclude, rerank)
        assert result.query_index.tolist() == sorted(expected)
        rows = list(zip(result.ap, result.inp, result.first_hit, strict=True))
        np.testing.assert_allclose(rows, [expected[query] for query in sorted(expected)], rtol=1e-12)
        here = (world.gallery_camids == result.camera) & (world.gallery_pids >= 0)
        assert result.n_gallery == here.sum()
        own = world.query_camids[result.query_index] == result.camera
        assert own.any() == (exclude == "none")


def test_a_camera_without_a_match_has_no_queries():
    world = gaussian_world(q=4, g=30, people=3)
    elsewhere = world._replace(gallery_pids=np.where(world.gallery_camids == 2, 77, world.gallery_pids))
    found = {result.camera: len(result.query_index) for result in evaluate_by_camera(*elsewhere, exclude="none")}
    assert found[2] == 0
    assert found[1] > 0


def test_wrong_arguments_are_refused_as_by_the_whole_ranking():
    world = gaussian_world(q=4, g=30)
    with pytest.raises(DataError, match="exclude must be"):
        evaluate_by_camera(*world, exclude="cameras")
    with pytest.raises(DataError, match="query_pids has shape"):
        evaluate_by_camera(*world._replace(query_pids=world.query_pids[:3]))
