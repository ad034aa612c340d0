"""The index of a large gallery: its recall, what it covers, and when it is built, kept and dropped."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import DataError
from reid.gallery.gallery import Gallery
from reid.gallery.layout import PARTS, read_lists
from reid.gallery.writer import Writer
from tests.helpers.galleries import SPACE, WIDTH, entry

N = 2400


def people(count: int, seed: int = 0) -> np.ndarray:
    """Return vectors of people with ten images each, as embeddings of a trained model are."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.standard_normal((count // 10, WIDTH)), 10, axis=0)
    rows += 0.25 * rng.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    done = gallery.add([entry(number) for number in range(N)], people(N), index_from=1000)
    assert done.index is not None
    return gallery


def test_the_index_finds_nearly_all_of_the_nearest_and_reads_few_entries(gallery):
    index = gallery.info().index
    assert (index.rows, index.lists) == (N, 49)
    assert index.recall >= 0.98
    assert index.probes < index.lists / 3
    queries = people(N, seed=0)[::24] + 0.01
    found = shared = 0
    for query in queries:
        near = gallery.search(query)
        assert near.index == index
        exact = gallery.search(query, exact=True)
        assert exact.index is None
        shared += len({hit.entry.sha256 for hit in near.hits} & {hit.entry.sha256 for hit in exact.hits})
        found += len(exact.hits)
    assert shared / found >= 0.96


def test_a_filtered_search_is_exact(gallery):
    rows = people(N)
    filtered = gallery.search(rows[5], where="camera=1")
    assert filtered.index is None
    cameras = np.arange(N) % 3
    best = [row for row in np.argsort(-(rows @ rows[5])) if cameras[row] == 1][:10]
    assert [hit.entry.sha256 for hit in filtered.hits] == [entry(int(row)).sha256 for row in best]


def test_new_entries_are_found_before_the_index_covers_them_and_it_is_built_again_when_there_are_many(gallery):
    new = people(700, seed=9)
    some = gallery.add([entry(N + number) for number in range(300)], new[:300], index_from=1000)
    assert some.index is None
    assert gallery.info().index.rows == N
    assert gallery.search(new[7], top=1).hits[0].entry == entry(N + 7)
    many = gallery.add([entry(N + number) for number in range(700)], new, index_from=1000)
    assert many.index.rows == gallery.info().index.rows == N + 700
    assert gallery.search(new[400], top=1).hits[0].entry == entry(N + 400)


def test_an_update_keeps_the_index_and_another_embedding_drops_it(gallery):
    first = gallery.info().index
    gallery.add([entry(3, label="Ann")], people(N)[3:4], index_from=1000)
    assert gallery.info().index == first
    assert gallery.search(people(N)[3], top=1).hits[0].entry.label == "Ann"
    gallery.add([entry(3, camera=9)], people(10, seed=8)[:1], index_from=1000)
    assert gallery.info().index != first
    assert gallery.search(people(10, seed=8)[0], top=1).hits[0].entry.camera == 9


def test_removing_builds_the_index_anew_or_drops_it(gallery, tmp_path):
    former = gallery.info().index
    gallery.remove(label="person 7", index_from=1000)
    index = gallery.info().index
    assert index.rows == N - 4
    names = {path.name for path in (tmp_path / "g" / PARTS).iterdir()}
    assert former.name not in names
    assert index.name in names
    gallery.remove(where="camera != 0", index_from=1000)
    assert gallery.info().index is None
    assert not list((tmp_path / "g" / PARTS).glob("*.npz"))
    assert gallery.search(people(N)[0], top=1).hits[0].entry == entry(0)


def test_a_damaged_index_is_one_message(gallery, tmp_path):
    (tmp_path / "g" / PARTS / gallery.info().index.name).write_bytes(b"PK\3\4 no archive")
    read_lists.cache_clear()
    with pytest.raises(DataError, match="is damaged"):
        Gallery.open(tmp_path / "g").search(people(10)[0])


def test_identical_entries_and_a_tiny_gallery_can_be_indexed(tmp_path):
    gallery = Gallery.open(tmp_path / "g", space=SPACE)
    same = np.repeat(people(10)[:1], 40, axis=0)
    index = gallery.add([entry(number) for number in range(40)], same, index_from=2).index
    assert index.recall >= 0.98
    assert len(gallery.search(same[0]).hits) == 10
    gallery.remove(where=f"sha256 != {entry(0).sha256}", index_from=1)
    assert len(gallery.search(same[0]).hits) == 1
    with Writer(tmp_path / "g") as writer:
        assert writer.header.index.rows == 1
