"""Feature rows read in blocks, and blocks of similarities: their starts, their padding and their errors."""

import numpy as np
import pytest
import torch

from data.errors import DataError
from reid.ranking.similarity import TILE, FeatureRows, padded_to, similarity_blocks


def rows_of(count, dim=3, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def unit(rows):
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def chunked(features, name, keep=None):
    """Return rows read two tiles at a time, so that a few hundred rows are many chunks."""
    return FeatureRows(features, name, keep, chunk_rows=2 * TILE)


def test_rows_are_rounded_up_to_whole_tiles():
    assert [padded_to(rows) for rows in (0, 1, 63, 64, 65, 128, 129)] == [64, 64, 64, 64, 128, 128, 192]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_block_has_unit_rows_and_then_zeros(make, dtype):
    values = rows_of(300, dtype=dtype)
    rows = chunked(make(values), "image")
    assert (len(rows), rows.dim, rows.name) == (300, 3, "image")
    for start, stop in ((0, 300), (0, 1), (64, 192), (130, 300), (290, 400), (5, 261)):
        block = rows.block(start, stop)
        count = min(stop, 300) - start
        assert block.dtype == torch.float32
        assert block.shape == (padded_to(count), 3)
        np.testing.assert_allclose(block[:count].numpy(), unit(values[start:stop]), atol=1e-6)
        assert not block[count:].any()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_the_rows_to_keep_are_read_in_their_order(make):
    values, keep = rows_of(500), np.random.default_rng(1).permutation(500)[:290]
    rows = chunked(make(values), "image", keep)
    assert len(rows) == 290
    np.testing.assert_allclose(rows.block(7, 288)[:281].numpy(), unit(values[keep[7:288]]), atol=1e-6)
    assert [rows.number(place) for place in (0, 7, 289)] == [keep[0], keep[7], keep[289]]
    assert FeatureRows(values, "image").number(41) == 41


def test_float64_is_scaled_before_it_is_rounded():
    """Numbers beyond float32 whose direction float32 can represent."""
    values = np.array([[3e-200, 4e-200], [3e200, -4e200]])
    for given in (values, torch.from_numpy(values)):
        np.testing.assert_allclose(
            FeatureRows(given, "image").block(0, 2)[:2].numpy(), [[0.6, 0.8], [0.6, -0.8]], rtol=1e-6
        )
    whole = FeatureRows(np.array([[3, 4]]), "image").block(0, 1)
    np.testing.assert_allclose(whole[:1].numpy(), [[0.6, 0.8]], rtol=1e-6)


def test_unit_rows_are_not_normalized_again():
    values = np.array([[3.0, 4.0]], np.float32)
    assert FeatureRows(values, "image", unit=True).block(0, 1)[0].tolist() == [3.0, 4.0]


def test_tensors_that_require_a_gradient_can_be_read():
    rows = FeatureRows(torch.tensor([[3.0, 4.0]], requires_grad=True), "image")
    assert not rows.block(0, 1).requires_grad


@pytest.mark.parametrize("shape", [(5,), (5, 0), (2, 3, 4)])
def test_shapes_that_cannot_be_rows(shape):
    with pytest.raises(DataError) as error:
        FeatureRows(np.zeros(shape), "query")
    assert str(error.value) == f"query features have shape {shape}; they must be [images, dimensions]"


@pytest.mark.parametrize("keep", [None, np.arange(299, -1, -1)])
def test_the_first_row_that_is_not_finite_is_named(keep):
    values = rows_of(300)
    values[[200, 260], 1] = np.nan, np.inf
    with pytest.raises(DataError) as error:
        chunked(values, "gallery", keep).block(0, 300)
    first = 200 if keep is None else 260
    assert str(error.value) == (
        f"gallery features contain NaN or infinity, first in row {first}; the model that made them diverged"
    )


def blocks_of(queries, gallery, block_bytes, **options):
    blocks = similarity_blocks(queries, gallery, block_bytes, **options)
    return [(start, block, block.copy()) for start, block in blocks]


@pytest.mark.parametrize(
    ("tiles", "starts"), [(0, [0, 64, 128, 192, 256]), (1, [0, 64, 128, 192, 256]), (2, [0, 128, 256]), (99, [0])]
)
@pytest.mark.parametrize("resident", [True, False])
def test_blocks_of_any_size_have_the_same_similarities(monkeypatch, tiles, starts, resident):
    limit = 4 * 384 * 3 - (0 if resident else 1)  # what the gallery needs, or one byte less
    a, b = rows_of(290, seed=2), rows_of(350, seed=3)
    ((_, whole),) = similarity_blocks(FeatureRows(a, "query"), FeatureRows(b, "gallery"))
    read = []
    monkeypatch.setattr(FeatureRows, "block", _counted(FeatureRows.block, read))
    width = 384
    budget = 4 * width * TILE * tiles + 4 * width * TILE // 2
    found = blocks_of(chunked(a, "query"), chunked(b, "gallery"), budget, resident_bytes=limit)
    assert [start for start, *_ in found] == starts
    expected = unit(a) @ unit(b).T
    height = starts[1] if len(starts) > 1 else 290
    for start, view, block in found:
        assert view.flags.c_contiguous
        assert block.shape == (min(290 - start, height), width)
        np.testing.assert_allclose(block[:, :350], expected[start : start + len(block)], atol=1e-6)
        assert (block[:, 350:] == -np.inf).all()
        np.testing.assert_array_equal(block, whole[start : start + len(block)])
        assert np.shares_memory(view, found[0][1])
    gallery = [place for name, *place in read if name == "gallery"]
    assert gallery == ([[0, 350]] if resident else [[0, 128], [128, 256], [256, 384]] * len(starts))


def _counted(block, read):
    def counted(self, start, stop):
        read.append((self.name, start, stop))
        return block(self, start, stop)

    return counted


def test_a_gallery_that_just_fits_stays_in_memory(monkeypatch):
    read = []
    monkeypatch.setattr(FeatureRows, "block", _counted(FeatureRows.block, read))
    queries, gallery = FeatureRows(rows_of(200), "query"), FeatureRows(rows_of(5), "gallery")
    assert len(blocks_of(queries, gallery, 1, resident_bytes=4 * 64 * 3)) == 4
    assert [place for name, *place in read if name == "gallery"] == [[0, 5]]


def test_different_numbers_of_dimensions():
    with pytest.raises(DataError) as error:
        list(similarity_blocks(FeatureRows(rows_of(2, 3), "query"), FeatureRows(rows_of(2, 4), "gallery")))
    assert str(error.value) == "query features have 3 dimensions and gallery 4"
