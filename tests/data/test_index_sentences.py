"""The sentences of a dataset in its index: their table, the hash, and what does not depend on them."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.schemas import SENTENCES
from flows.reasons.reason import Purpose, index_reason
from tests.helpers.data_trees import CUHK_PEDES, market, text_search

PURPOSE = Purpose(dataset="people", recipe="cuhk_pedes")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("data.files.os.fsync", lambda handle: None)


@pytest.fixture
def root(tmp_path):
    return text_search(tmp_path / "set", "cuhk_pedes")


def indexed(store, root, reader="cuhk_pedes"):
    return index(store, config=DatasetConfig(reader=reader, root=str(root))).images


def reworded(root, number, place, sentence):
    """Replace one sentence of one row of the JSON file."""
    rows = json.loads((root / "reid_raw.json").read_text())
    rows[number]["captions"][place] = sentence
    (root / "reid_raw.json").write_text(json.dumps(rows))


def test_sentences_are_a_table_in_the_order_of_the_images(store, root):
    images = indexed(store, root)
    assert pq.read_schema(images.ref.folder / "sentences.parquet").equals(SENTENCES, check_metadata=True)
    captions = {f"imgs/{row['file_path']}": row["captions"] for row in CUHK_PEDES}
    rows = images.rows("path", "sha256").to_pylist()
    assert images.sentences().to_pylist() == [
        {"image_path": row["path"], "image_sha256": row["sha256"], "number": number, "sentence": sentence}
        for row in rows
        for number, sentence in enumerate(captions[row["path"]])
    ]


def test_a_dataset_without_sentences_has_no_table(store, tmp_path):
    images = indexed(store, market(tmp_path / "market"), "market1501")
    assert images.sentences() is None


def test_a_damaged_table_is_an_error(store, root):
    images = indexed(store, root)
    (images.ref.folder / "sentences.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"sentences\.parquet cannot be read"):
        images.sentences()


@pytest.mark.parametrize("row", [0, 6])
def test_a_changed_sentence_changes_the_dataset_but_nothing_that_is_read_of_its_images(store, root, row):
    before = indexed(store, root)
    store.record_use(before.ref, dataset=PURPOSE.dataset, recipe=PURPOSE.recipe)
    reworded(root, row, 0, "Other words.")
    after = indexed(store, root)
    assert before.description.dataset_hash != after.description.dataset_hash
    assert before.contents() == after.contents()
    for table in ("images.parquet", "rejected.parquet"):
        assert before.ref.digests_of(table) == after.ref.digests_of(table)
    why = index_reason(store, after.ref, {before.ref.fingerprint}, PURPOSE)
    assert why == "sentences changed: those of 1 image"


def test_a_sentence_of_a_split_that_is_not_used_changes_nothing(store, root):
    before = indexed(store, root)
    reworded(root, 4, 0, "Other words.")
    assert indexed(store, root).ref == before.ref


def test_images_and_sentences_that_changed_are_both_named(store, root):
    before = indexed(store, root)
    store.record_use(before.ref, dataset=PURPOSE.dataset, recipe=PURPOSE.recipe)
    reworded(root, 0, 1, "Other words.")
    (root / "imgs/CUHK01/0363005.png").unlink()
    after = indexed(store, root)
    assert index_reason(store, after.ref, {before.ref.fingerprint}, PURPOSE).startswith(
        "images changed: 1 image removed; sentences changed: those of 1 image; rejected files changed"
    )
