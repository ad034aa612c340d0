"""The ranking against a slow, independent reference; ties, junk, cameras, blocks, streaming and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from reid.config.evaluate import RerankConfig
from reid.ranking.metrics import evaluate_ranking
from reid.ranking.similarity import FeatureRows, similarity_blocks
from tests.helpers.rankings import gaussian_world


def brute_force(  # noqa: PLR0917
    query, gallery, q_pids, g_pids, q_cams, g_cams, same_camera=True
):
    """Rank by sorting everything in float64, following the text of the protocol step by step."""
    query = query / np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-12)
    gallery = gallery / np.maximum(np.linalg.norm(gallery, axis=1, keepdims=True), 1e-12)
    results = {}
    for i in range(len(query)):
        line = []
        for j in range(len(gallery)):
            if g_pids[j] == -1 or (same_camera and g_pids[j] == q_pids[i] and g_cams[j] == q_cams[i]):
                continue
            line.append((-float(np.dot(query[i], gallery[j])), j))
        line.sort()  # equal similarity: gallery order
        hits = [rank for rank, (_, j) in enumerate(line, start=1) if g_pids[j] == q_pids[i]]
        if not hits:
            continue
        ap = sum(n / rank for n, rank in enumerate(hits, start=1)) / len(hits)
        results[i] = (ap, len(hits) / hits[-1], hits[0], len(hits), [j for _, j in line])
    return results


def compare(ranking, expected, gallery_size, max_rank=50):
    assert ranking.query_index.tolist() == sorted(expected)
    rows = [expected[i] for i in ranking.query_index]
    np.testing.assert_allclose(ranking.ap, [row[0] for row in rows], rtol=1e-12)
    np.testing.assert_allclose(ranking.inp, [row[1] for row in rows], rtol=1e-12)
    assert ranking.first_hit.tolist() == [row[2] for row in rows]
    assert ranking.n_relevant.tolist() == [row[3] for row in rows]
    assert ranking.mAP == pytest.approx(np.mean([row[0] for row in rows]))
    assert ranking.mINP == pytest.approx(np.mean([row[1] for row in rows]))
    cmc = [np.mean([row[2] <= rank for row in rows]) for rank in range(1, max_rank + 1)]
    np.testing.assert_allclose(ranking.cmc, cmc, atol=1e-12)
    k = ranking.top_index.shape[1]
    for got, row in zip(ranking.top_index, rows, strict=True):
        assert got.tolist() == (row[4] + [-1] * k)[:k]


def lattice(rng, rows):
    """Rows of +-1 in 16 dimensions: norm 4, and similarities are exact sixteenths, so there are many ties."""
    return rng.choice(np.array([-1, 1], np.float32), (rows, 16))


@st.composite
def worlds(draw):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    q, g = draw(st.integers(1, 12)), draw(st.integers(1, 70))
    people, cameras = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    query, gallery = lattice(rng, q), lattice(rng, g)
    if draw(st.booleans()):  # copies of a few images everywhere: exact ties across identities
        gallery = gallery[rng.integers(0, min(g, 4), g)]
    # -1 is junk, 0 a distractor that is in no query.
    labels = (
        rng.integers(1, people + 1, q),
        rng.integers(-1, people + 1, g),
        rng.integers(0, cameras, q),
        rng.integers(0, cameras, g),
    )
    return query, gallery, *labels


@settings(max_examples=120)
@given(worlds(), st.booleans(), st.integers(1, 60))
def test_any_small_world_matches_the_brute_force(world, same_camera, top_k):
    expected = brute_force(*world, same_camera=same_camera)
    options = {"top_k": top_k, "exclude": "same_camera" if same_camera else "none"}
    if not expected:
        with pytest.raises(DataError, match="none of the"):
            evaluate_ranking(*world, **options)
        return
    ranking = evaluate_ranking(*world, **options)
    compare(ranking, expected, len(world[1]))
    assert ranking.n_skipped == len(world[0]) - len(expected)
    assert ranking.n_junk == (world[3] == -1).sum()
    assert ranking.n_gallery == (world[3] != -1).sum()


@settings(max_examples=80)
@given(worlds(), st.floats(0, 1), st.integers(0, 10**6))
def test_an_unknown_camera_excludes_nothing(world, share, seed):
    rng = np.random.default_rng(seed)
    *others, q_cams, g_cams = world
    q_cams, g_cams = (np.where(rng.random(len(cams)) < share, -1, cams) for cams in (q_cams, g_cams))
    # In the reference, every unknown camera is a camera of its own.
    apart = [
        np.where(cams == -1, -10 * side - np.arange(len(cams)), cams) for side, cams in ((10, q_cams), (99, g_cams))
    ]
    expected = brute_force(*others, *apart)
    if expected:
        compare(evaluate_ranking(*others, q_cams, g_cams), expected, len(g_cams))


@settings(max_examples=40)
@given(worlds())
def test_without_cameras_no_image_of_the_identity_is_left_out(world):
    *others, q_cams, g_cams = world
    expected = brute_force(*others, q_cams, g_cams, same_camera=False)
    if expected:
        for exclude in ("same_camera", "none"):
            unknown = evaluate_ranking(*others, np.full_like(q_cams, -1), np.full_like(g_cams, -1), exclude=exclude)
            compare(unknown, expected, len(g_cams))


def test_a_realistic_world_matches_the_brute_force():
    world = gaussian_world()
    ranking = evaluate_ranking(*world)
    expected = brute_force(*world)
    compare(ranking, expected, 900)
    for name in ("query_index", "first_hit", "n_relevant", "top_index"):
        assert getattr(ranking, name).dtype == np.int64, name
    assert (ranking.ap.dtype, ranking.inp.dtype, ranking.top_score.dtype) == (np.float64, np.float64, np.float32)
    for max_rank in (1, 3):  # the curve ends there, and later hits count nowhere
        compare(evaluate_ranking(*world, max_rank=max_rank), expected, 900, max_rank=max_rank)
    assert 0.05 < ranking.mAP < 0.95  # neither trivial
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in world[:2]]
    cosine = (unit[0][ranking.query_index] @ unit[1].T)[np.arange(ranking.n_valid)[:, None], ranking.top_index]
    np.testing.assert_allclose(ranking.top_score, cosine, atol=1e-6)


def test_a_case_worked_by_hand():
    # One query at 0 degrees; gallery at growing angles. The query is identity 1 from camera 1.
    angles = np.deg2rad([5, 10, 20, 30, 40, 50, 60])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pids = [1, -1, 1, 2, 1, 0, 1]
    cams = [1, 2, 2, 2, 3, 2, 2]
    # 5 deg: own camera, excluded. 10: junk, excluded. Others: 20 hit, 30 miss, 40 hit, 50 distractor, 60 hit.
    result = evaluate_ranking(np.array([[2.0, 0.0]]), gallery, [1], pids, [1], cams, max_rank=5, top_k=6)
    assert result.mAP == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert result.mINP == pytest.approx(3 / 5)
    assert result.cmc.tolist() == [1] * 5
    assert result.top_index.tolist() == [[2, 3, 4, 5, 6, -1]]
    assert np.isnan(result.top_score[0, 5])
    assert result.top_score[0, 0] == pytest.approx(np.cos(np.deg2rad(20)))
    assert (result.n_valid, result.n_skipped, result.n_gallery, result.n_junk) == (1, 0, 6, 1)


def test_equal_images_tie_exactly_and_rank_in_gallery_order():
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.standard_normal((1, 513), dtype=np.float32), 1500, axis=0)
    query = rng.standard_normal((3, 513), dtype=np.float32)
    pids = np.zeros(1500, int)
    pids[700] = 1
    result = evaluate_ranking(query, gallery, [1] * 3, pids, [0] * 3, [1] * 1500)
    assert result.first_hit.tolist() == [701] * 3
    assert result.top_index.tolist() == [list(range(50))] * 3


@pytest.mark.parametrize("threads", [1, 2])
def test_no_result_depends_on_blocks_or_threads(threads):
    world = gaussian_world(q=200, g=1113, dim=48)
    before = torch.get_num_threads()
    expected = evaluate_ranking(*world)
    try:
        torch.set_num_threads(threads)
        got = evaluate_ranking(*world, block_bytes=1)
    finally:
        torch.set_num_threads(before)
    for name in ("ap", "inp", "first_hit", "top_index", "top_score", "cmc"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_one_querys_result_does_not_depend_on_the_others():
    query, gallery, q_pids, g_pids, q_cams, g_cams = gaussian_world(q=130)
    whole = evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams)
    for row, index in enumerate(whole.query_index[:5]):
        one = slice(index, index + 1)
        alone = evaluate_ranking(query[one], gallery, q_pids[one], g_pids, q_cams[one], g_cams)
        assert alone.ap[0] == whole.ap[row]
        np.testing.assert_array_equal(alone.top_score[0], whole.top_score[row])


def test_arrays_maps_and_tensors_give_the_same(tmp_path):
    query, gallery, *labels = gaussian_world()
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    expected = evaluate_ranking(query, gallery, *labels)
    for q, g in (
        (query, mapped),
        (torch.from_numpy(query).requires_grad_(), torch.from_numpy(gallery)),
        (query.astype(np.float64), gallery.astype(np.float64)),
        (np.asfortranarray(query), gallery),
    ):
        assert evaluate_ranking(q, g, *[torch.tensor(x) for x in labels]).mAP == expected.mAP
    halved = evaluate_ranking(torch.from_numpy(query).bfloat16(), gallery.astype(np.float16), *labels)
    assert halved.mAP == pytest.approx(expected.mAP, abs=0.01)


def test_scale_does_not_matter_and_inputs_are_not_changed():
    query, gallery, *labels = gaussian_world()
    copies = query.copy(), gallery.copy()
    a = evaluate_ranking(query, gallery, *labels)
    b = evaluate_ranking(query * 64, gallery * 0.125, *labels)
    assert a.mAP == b.mAP
    np.testing.assert_array_equal(query, copies[0])
    np.testing.assert_array_equal(gallery, copies[1])


def at_scale(values, scale, dtype):
    """Scale in float64 and round to `dtype` once."""
    return (values.astype(np.float64) * scale).astype(dtype)


@pytest.mark.parametrize("rerank", [None, RerankConfig(k1=5, k2=3)])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, scale) for scale in (1e-40, 1e-38, 1e-30, 1e-25, 1e-20, 1e-3, 1e5, 1e18, 1e20, 1e30, 1e36)]
    + [(np.float64, scale) for scale in (1e-300, 1e-200, 1e-40, 1e20, 1e38, 1e200, 1e300)]
    + [(np.float16, scale) for scale in (2.0**-8, 2.0**-4, 2.0**10)],
)
def test_any_scale_that_the_type_can_hold_gives_the_same_ranking(dtype, scale, rerank):
    query, gallery, *labels = gaussian_world(q=20, g=90, people=6)
    query, gallery = (at_scale(rows, 1, np.float16).astype(np.float32) for rows in (query, gallery))
    expected = evaluate_ranking(query, gallery, *labels, rerank=rerank)
    for q_scale, g_scale in ((scale, scale), (1, scale), (scale, 1)):
        scaled = at_scale(query, q_scale, dtype), at_scale(gallery, g_scale, dtype)
        assert all(np.isfinite(x).all() and x.any(axis=1).all() for x in scaled)
        got = evaluate_ranking(*scaled, *labels, rerank=rerank)
        assert (got.mAP, got.mINP) == (expected.mAP, expected.mINP)
        for name in ("ap", "inp", "first_hit", "n_relevant", "cmc"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        np.testing.assert_allclose(got.top_score, expected.top_score, atol=2e-3)
        tensors = [torch.from_numpy(x) for x in scaled]
        assert evaluate_ranking(*tensors, *labels, rerank=rerank).mAP == expected.mAP


def test_rows_of_very_different_scales_and_bfloat16():
    query, gallery, *labels = gaussian_world()
    powers = np.exp2(np.random.default_rng(0).integers(-120, 120, len(gallery))).astype(np.float32)
    expected, got = (evaluate_ranking(query, rows, *labels) for rows in (gallery, gallery * powers[:, None]))
    np.testing.assert_array_equal(got.top_score, expected.top_score)
    halved = [torch.from_numpy(x).bfloat16() for x in (query, gallery)]
    tiny = [x * 2.0**-100 for x in halved]
    assert evaluate_ranking(*tiny, *labels).mAP == evaluate_ranking(*halved, *labels).mAP


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_bad_number_at_any_scale_is_named(bad, dtype):
    query, gallery, *labels = gaussian_world()
    query = query.astype(dtype)
    query[3, 5] = bad
    with pytest.raises(DataError, match="query features contain NaN or infinity, first in row 3"):
        evaluate_ranking(query, gallery, *labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: (w[0][:, :3], *w[1:]), "3 dimensions and gallery 64"),
        (lambda w: (w[0], w[1], w[2][:-1], *w[3:]), "query_pids has shape"),
        (lambda w: (*w[:5], w[5][:7]), "gallery_camids has shape"),
        (lambda w: (w[0][:, 0], *w[1:]), "must be"),
        (lambda w: (w[0][:0], w[1], w[2][:0], w[3], w[4][:0], w[5]), "the query is empty"),
        (lambda w: (w[0], w[1], w[2] * 0 + 77, *w[3:]), "exclude='none'"),
        (
            lambda w: (np.where(np.arange(150)[:, None] == 17, np.nan, w[0]), *w[1:]),
            "query features contain NaN.*row 17",
        ),
        (
            lambda w: (w[0], np.where(np.arange(900)[:, None] == 5, np.inf, w[1]), *w[2:]),
            "gallery features contain NaN",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(DataError, match=message):
        evaluate_ranking(*change(gaussian_world()))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_complex_features_do_not_lose_a_part(as_tensor):
    query, *rest = gaussian_world()
    odd = query * 1j
    with pytest.raises(DataError, match=r"query features are (torch\.)?complex\d+; they must be real"):
        evaluate_ranking(torch.from_numpy(odd) if as_tensor else odd, *rest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": "same_cam"}, "exclude must be 'same_camera' or 'none', not 'same_cam'"),
        ({"exclude": None}, "not None"),
        ({"top_k": 0}, "top_k must be a whole number from 1 up, not 0"),
        ({"top_k": True, "max_rank": -1}, "2 problems"),
        ({"max_rank": 1.5}, "max_rank must be"),
    ],
)
def test_options_that_do_not_exist_are_named(options, message):
    with pytest.raises(DataError, match=message):
        evaluate_ranking(*gaussian_world(), **options)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    "odd",
    [
        lambda labels: labels + 0.5,
        lambda labels: np.where(np.arange(len(labels)) == 3, np.nan, labels),
        lambda labels: np.where(np.arange(len(labels)) == 3, np.inf, labels),
        lambda labels: labels.astype(np.float64) + 2.0**54,
        lambda labels: np.full(len(labels), 2**64 - 1, np.uint64),
        lambda labels: labels.astype(str),
        lambda labels: labels > 2,
        lambda labels: [None] * len(labels),
    ],
)
def test_labels_that_are_not_whole_numbers_are_named(place, odd):
    query, gallery, *labels = gaussian_world()
    labels[place] = odd(np.asarray(labels[place]))
    name = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")[place]
    with pytest.raises(DataError, match=f"{name} must be whole numbers"):
        evaluate_ranking(query, gallery, *labels)


def test_the_whole_message_about_shapes_and_empty_sides():
    query, gallery, query_pids, gallery_pids, query_camids, gallery_camids = gaussian_world(q=5, g=9)
    with pytest.raises(DataError) as caught:
        evaluate_ranking(query, gallery, query_pids[1:], gallery_pids[1:], query_camids[1:], gallery_camids[1:])
    assert [line.strip(" -") for line in str(caught.value).splitlines()] == [
        "ranking: 4 problems",
        "query_pids has shape (4,), but there are 5 query features",
        "query_camids has shape (4,), but there are 5 query features",
        "gallery_pids has shape (8,), but there are 9 gallery features",
        "gallery_camids has shape (8,), but there are 9 gallery features",
    ]
    with pytest.raises(DataError, match=r"^ranking: the query is empty$"):
        evaluate_ranking(query[:0], gallery, query_pids[:0], gallery_pids, query_camids[:0], gallery_camids)
    with pytest.raises(DataError, match=r"^ranking: the gallery is empty$"):
        evaluate_ranking(query, gallery[:0], query_pids, gallery_pids[:0], query_camids, gallery_camids[:0])
    with pytest.raises(DataError, match=r"^ranking: max_rank must be a whole number from 1 up, not 0$"):
        evaluate_ranking(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids, max_rank=0)


def test_the_largest_labels_are_accepted_and_the_message_gives_the_range():
    query, gallery, *labels = gaussian_world()
    expected = evaluate_ranking(query, gallery, *labels)
    largest, exact = np.iinfo(np.int64).max, 2.0**53
    assert labels[0].max() == labels[1].max()
    for top in (largest, exact):
        moved = [np.where(values == values.max(), top, values) for values in labels[:2]]
        assert evaluate_ranking(query, gallery, *moved, *labels[2:]).mAP == expected.mAP
    with pytest.raises(DataError) as caught:
        evaluate_ranking(query, gallery, labels[0] + 0.5, *labels[1:])
    assert str(caught.value) == (
        f"ranking: query_pids must be whole numbers from {-largest} to {largest}, and are float64: number the "
        "identities and the cameras"
    )


def test_places_without_a_gallery_image_are_minus_one_and_nan():
    query, gallery, *labels = gaussian_world()
    found = evaluate_ranking(query, gallery, *labels, top_k=len(gallery) + 3)
    assert set(found.top_index[:, -3:].ravel().tolist()) == {-1}
    assert np.isnan(found.top_score[:, -3:]).all()


@pytest.mark.parametrize(
    "as_type", [np.float64, np.int16, object, torch.tensor, list], ids=["float", "int16", "object", "tensor", "list"]
)
def test_whole_numbers_of_any_type_are_labels(as_type):
    query, gallery, *labels = gaussian_world()
    expected = evaluate_ranking(query, gallery, *labels)
    convert = as_type if as_type in (torch.tensor, list) else lambda values: np.asarray(values).astype(as_type)
    found = evaluate_ranking(query, gallery, *map(convert, labels))
    assert (found.mAP, found.mINP) == (expected.mAP, expected.mINP)


def test_nan_rows_are_named_by_their_position_and_junk_may_be_nan():
    query, gallery, q_pids, g_pids, q_cams, g_cams = gaussian_world()
    junk = np.flatnonzero(g_pids == -1)
    gallery[junk] = np.nan
    evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams)
    bad = int(np.flatnonzero(g_pids != -1)[400])
    gallery[bad, 3] = np.inf
    with pytest.raises(DataError, match=f"row {bad};"):
        evaluate_ranking(query, gallery, q_pids, g_pids, q_cams, g_cams)


def test_zero_vectors_are_as_far_from_all():
    result = evaluate_ranking(np.zeros((1, 4)), np.eye(4), [1], [2, 1, 2, 1], [1], [2, 2, 2, 2])
    assert result.top_score[0, :4].tolist() == [0, 0, 0, 0]
    assert result.first_hit.tolist() == [2]


@pytest.mark.parametrize("dim", [7, 64, 512, 1280])
def test_the_similarity_of_a_pair_has_the_same_bits_at_every_position(dim):
    rng = np.random.default_rng(dim)
    gallery = np.repeat(rng.standard_normal((1, dim), dtype=np.float32), 1001, axis=0)
    query = np.repeat(rng.standard_normal((1, dim), dtype=np.float32), 333, axis=0)
    values = set()
    for rows, columns, size in ((1, 1, 1), (1, 1001, 1), (333, 1001, 1), (333, 1001, 1 << 30), (70, 65, 1 << 20)):
        for _, block in similarity_blocks(
            FeatureRows(query[:rows], "query"), FeatureRows(gallery[:columns], "gallery"), size
        ):
            values.update(np.unique(block[:, :columns]).tolist())
            assert (block[:, columns:] == -np.inf).all()
    assert len(values) == 1
