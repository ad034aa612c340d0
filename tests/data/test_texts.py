"""Text columns that make Python texts for single rows only, lookups in them, and digests of lists of texts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from data.artifacts.contents import caption_text, caption_texts
from data.artifacts.fingerprint import digest
from data.columns.digests import digests_of
from data.columns.json_rows import RowDigest, list_digest
from data.columns.texts import TextPlaces, Texts
from data.stages.images import ImageDigests

NAMES = ["b", "a", "", "é", "名前", "a"]


def test_a_number_selects_one_text_and_everything_else_a_column():
    texts = Texts(NAMES)
    assert [texts[0], texts[-1], texts[np.int64(3)]] == ["b", "a", "é"]
    assert texts[1:3].tolist() == ["a", ""]
    assert texts[::2].tolist() == ["b", "", "名前"]
    assert texts[np.array([4, 0])].tolist() == ["名前", "b"]
    assert texts[np.array([False, True, False, False, False, True])].tolist() == ["a", "a"]
    assert [*texts] == NAMES
    assert len(texts) == len(NAMES)
    with pytest.raises(IndexError):
        texts[6]


def test_columns_are_equal_by_their_texts():
    chunks = pa.chunked_array([pa.array(NAMES[:2]), pa.array(NAMES[2:])])
    assert Texts(NAMES) == Texts(chunks) == Texts.joined([chunks.slice(0, 3), chunks.slice(3)])
    assert Texts(NAMES) != Texts(NAMES[::-1])
    assert pa.table({"name": Texts(NAMES)}).column("name").to_pylist() == NAMES


def test_places_and_distinct_texts_are_those_of_plain_python():
    texts = Texts(NAMES)
    assert texts.sorted_distinct().tolist() == sorted(set(NAMES))
    assert Texts(["a", "c", "b"]).places_in(texts).tolist() == [1, -1, 0]
    assert Texts([]).places_in(texts).tolist() == []
    assert texts.lengths().tolist() == [len(name.encode()) for name in NAMES]


@pytest.mark.parametrize("runs", [1, 3, 40])
def test_single_texts_are_found_in_columns_of_few_and_of_many_ascending_parts(runs):
    rng = np.random.default_rng(runs)
    parts = [sorted({f"{number}" for number in rng.integers(1000, size=20)}) for _ in range(runs)]
    names = [name for part in parts for name in part]
    places, last = TextPlaces(Texts(names)), {name: at for at, name in enumerate(names)}
    for name in {*names, "", "0", "absent", "999999"}:
        assert places.find(name) == last.get(name)
    assert TextPlaces(Texts([])).find("a") is None


def test_digests_of_images_are_a_mapping_without_an_object_per_image():
    shas = [f"{number:064x}" for number in (255, 256, 0)]
    images = ImageDigests(Texts(["b", "c", "a"]), digests_of(pa.array(shas)))
    assert dict(images) == dict(zip(["b", "c", "a"], shas, strict=True))
    assert images["c"] == shas[1]
    assert images.get("absent") is None
    assert images.image(2) == ("a", shas[2])
    assert images.sample(2) == {"b": shas[0], "a": shas[2]}
    with pytest.raises(KeyError):
        images["absent"]


def test_a_list_of_texts_has_the_digest_of_its_canonical_json():
    long = [f"text {number}" for number in range(40_000)]
    for texts in ([], ["a"], NAMES, ['"', "\\", "\n", "é\0"], long):
        assert list_digest([pa.array(texts, pa.string())]) == digest(texts)
        assert list_digest([pa.chunked_array([pa.array(part, pa.string()) for part in (texts, texts)])]) == digest(
            texts + texts
        )


def test_rows_have_the_digest_of_their_canonical_json_if_that_is_asked_for():
    rows = [["é", 1], ["b", 2]]
    found = RowDigest(canonical=True)
    found.update(pa.table({"text": ["é", "b"], "number": [1, 2]}))
    assert found.hexdigest() == digest(rows)


@pytest.mark.parametrize(
    "texts", [["a coat", None, ""], [" a", "b"], ["a\n"], ["\x1fa\x85"], ["\u3000a"], ["é"], [None], []]
)
def test_captions_are_trimmed_as_python_trims_them(texts):
    column = pa.array(["out", *texts, "out "], pa.string()).slice(1, len(texts))
    assert caption_texts(column).to_pylist() == [caption_text(text) for text in texts]
