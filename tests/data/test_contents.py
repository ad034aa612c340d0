"""Content digests: what of an index and of captions counts for later stages, and what does not."""

from __future__ import annotations

import hashlib
import json
import random

import pyarrow as pa
import pytest

from data.artifacts.contents import (
    AUDITED,
    caption_contents,
    contents_of_captions,
    contents_of_images,
    image_contents,
)
from data.artifacts.store import SIDECAR, ArtifactStore
from data.errors import DataError
from data.files import read_json, write_json, write_table
from data.schemas import CAPTIONS, IMAGES
from tests.helpers.stages import make_artifact

ROWS = [
    {"path": "g/1.jpg", "split": "gallery", "pid": 7, "camid": 2, "sha256": "a" * 64},
    {"path": "g/2.jpg", "split": "gallery", "pid": 0, "camid": 2, "sha256": "b" * 64},
    {"path": "q/1.jpg", "split": "query", "pid": 7, "camid": 1, "sha256": "c" * 64},
    {"path": "t/1.jpg", "split": "train", "pid": 3, "camid": 1, "sha256": "d" * 64},
    {"path": "t/2.jpg", "split": "train", "pid": 3, "camid": 2, "sha256": "e" * 64},
    {"path": "t/3.jpg", "split": "train", "pid": -1, "camid": 2, "sha256": "f" * 64},
]


def images(rows=ROWS):
    return pa.Table.from_pylist([{"size": 1, "width": 1, "height": 1} | row for row in rows], IMAGES)


def with_change(number, **changes):
    return [row | (changes if place == number else {}) for place, row in enumerate(ROWS)]


def differs(before, after):
    return {name for name in before if before[name] != after[name]}


def test_the_digest_of_training_images_is_that_of_their_sorted_labels_and_bytes():
    text = json.dumps([[3, 1, "d" * 64], [3, 2, "e" * 64]], separators=(",", ":"))
    assert contents_of_images(images())["train"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("number", "changes", "expected"),
    [
        (3, {"path": "t/9.jpg"}, set()),
        (3, {"size": 5, "width": 5, "height": 5}, set()),
        (3, {"pid": 4}, {"train"}),
        (3, {"camid": 9}, {"train"}),
        (3, {"sha256": "1" * 64}, {"train"}),
        (5, {"sha256": "1" * 64}, set()),  # junk is not trained on
        (3, {"pid": 0}, {"train", "ranked"}),  # then the gallery's 0 is a person too
        (0, {"path": "g/9.jpg"}, {"ranked"}),
        (2, {"path": "q/9.jpg"}, {"ranked"}),
        (0, {"sha256": "1" * 64}, {"test", "ranked"}),
        (0, {"pid": 8}, {"test", "ranked"}),
        (0, {"split": "query"}, {"test", "ranked"}),
        (0, {"split": "train"}, {"test", "ranked", "train"}),
    ],
)
def test_each_part_changes_with_what_its_readers_use_and_with_nothing_else(number, changes, expected):
    assert differs(contents_of_images(images()), contents_of_images(images(with_change(number, **changes)))) == expected


def test_training_and_test_images_have_no_order_and_equal_bytes_count():
    shuffled = random.Random(3).sample(ROWS, len(ROWS))
    assert differs(contents_of_images(images()), contents_of_images(images(shuffled))) == {"ranked"}
    twice = [*ROWS, ROWS[3] | {"path": "t/copy.jpg"}]
    assert differs(contents_of_images(images()), contents_of_images(images(twice))) == {"train"}


def captions(**changes):
    rows = [
        dict.fromkeys(CAPTIONS.names)
        | {
            "image_path": row["path"],
            "image_sha256": row["sha256"],
            "caption": f"A person {row['pid']}.",
            "status": "ok",
        }
        | {name: row[name] for name in ("split", "pid", "camid")}
        | {"raw_text": f"A person {row['pid']}.", "template_id": "scgi", "batch_size": 32, "dtype": "float32"}
        for row in ROWS
    ]
    rows[3] |= changes
    return pa.Table.from_pylist(rows, CAPTIONS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict.fromkeys(("batch_size", "n_tokens", "n_replies"), 1), set()),
        (dict.fromkeys(("dtype", "model_id", "model_revision", "captioner_fingerprint", "quantization"), "x"), set()),
        ({"caption": " A person 3. "}, set()),  # training strips it
        ({"caption": "A man."}, {"train"}),
        ({"caption": None}, {"train"}),
        ({"raw_text": "A man."}, {"audit"}),
        ({"image_path": "t/9.jpg"}, {"audit"}),
        ({"attr_gender": "male"}, {"audit"}),
        ({"conf_gender": float("-inf")}, {"audit"}),
        ({"pid": 5}, {"train", "audit"}),
    ],
)
def test_captions_count_by_text_for_training_and_by_what_is_audited(changes, expected):
    assert differs(contents_of_captions(captions()), contents_of_captions(captions(**changes))) == expected


def test_a_gallery_caption_does_not_count_for_training():
    table = captions().to_pylist()
    table[0]["caption"] = "Another."
    assert (
        differs(contents_of_captions(captions()), contents_of_captions(pa.Table.from_pylist(table, CAPTIONS))) == set()
    )


def test_the_audit_reads_no_provenance():
    assert not {"batch_size", "captioner_fingerprint", "model_id", "dtype", "quantization"} & set(AUDITED)


def test_digests_are_kept_in_the_sidecar_and_computed_where_they_are_not(tmp_path):
    store = ArtifactStore(tmp_path)

    def produce(folder):
        write_table(folder / "images.parquet", images(), IMAGES)
        write_table(folder / "captions.parquet", captions(), CAPTIONS)

    kept = make_artifact(store, "index", {"n": 1}, produce, contents=lambda _: {"train": "1" * 64}).ref
    assert image_contents(kept) == {"train": "1" * 64}
    assert read_json(kept.folder / SIDECAR)["contents"] == {"train": "1" * 64}
    without = make_artifact(store, "index", {"n": 2}, produce).ref
    assert image_contents(without) == contents_of_images(images())
    assert caption_contents(without) == contents_of_captions(captions())
    assert kept.content != without.content
    assert store.find("index", kept.fingerprint) == kept
    (without.folder / "captions.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"captions\.parquet cannot be read .* run the index stage again"):
        caption_contents(without)


def test_an_edited_content_digest_is_damage(tmp_path):
    store = ArtifactStore(tmp_path)
    made = make_artifact(
        store, "index", {"n": 1}, lambda f: write_json(f / "x", {}), contents=lambda _: {"train": "1" * 64}
    ).ref
    sidecar = read_json(made.folder / SIDECAR)
    write_json(made.folder / SIDECAR, sidecar | {"contents": {"train": "2" * 64}})
    assert store.problems("index", made.fingerprint) == [f"{SIDECAR} was changed"]
