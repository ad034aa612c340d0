"""Readers of text-based person search datasets: labels, splits, sentences, rejected rows and broken files."""

from __future__ import annotations

import json

import pytest

from data.datasets import DatasetConfig, scan_dataset
from data.errors import DataError
from data.people import UNKNOWN_CAMERA
from data.readers.text_search import reader as readers
from data.readers.text_search.annotations import Annotation
from tests.helpers.data_trees import CUHK_PEDES, TEXT_SEARCH, described, litter, put, text_search


def scan(reader, root, **options):
    return scan_dataset(DatasetConfig(reader=reader, root=str(root), **options))


def labels(scanned):
    return {record.path: (record.split, record.pid, record.camid) for record in scanned.records}


def rejected(scanned):
    return {row.path: row.reason for row in scanned.rejected}


def write(root, rows, name="reid_raw.json"):
    (root / name).write_text(json.dumps(rows), encoding="utf-8")


# Labels, splits and sentences


def test_cuhk_pedes(tmp_path):
    root = text_search(tmp_path / "CUHK-PEDES", "cuhk_pedes")
    litter(root, root / "imgs")
    found = scan("cuhk_pedes", tmp_path)
    assert (found.root, found.rejected) == (root, [])
    assert labels(found) == {
        "imgs/CUHK01/0363004.png": ("train", 1, UNKNOWN_CAMERA),
        "imgs/CUHK01/0363005.png": ("train", 1, UNKNOWN_CAMERA),
        "imgs/cam_a/002_45.jpg": ("train", 2, UNKNOWN_CAMERA),
        "imgs/cam_b/002_90.jpg": ("train", 2, UNKNOWN_CAMERA),
        "imgs/Market/0007_c2s3_071052_01.jpg": ("query", 12004, UNKNOWN_CAMERA),
        "imgs/test_query/p1_s2.jpg": ("gallery", 12004, UNKNOWN_CAMERA),
        "imgs/CUHK03/1_1.png": ("query", 12005, UNKNOWN_CAMERA),
        "imgs/CUHK03/1_2.png": ("gallery", 12005, UNKNOWN_CAMERA),
    }
    assert {record.path: record.sentences for record in found.records} == {
        f"imgs/{row['file_path']}": tuple(row["captions"]) for row in CUHK_PEDES if row["split"] != "val"
    }
    val, rule = found.notices
    assert val == "split val is not used: 1 image with 2 sentences"
    assert "the first path of each test identity is a query (2)" in rule
    assert "not part of the dataset" in rule


def test_icfg_pedes_has_the_cameras_of_msmt17_and_both_splits_count_from_zero(tmp_path):
    found = scan("icfg_pedes", text_search(tmp_path, "icfg_pedes"))
    assert labels(found) == {
        "imgs/test/0627/0627_010_05_0303morning_0029_1.jpg": ("train", 1, 5),
        "imgs/train/0001/0001_000_01_0303noon_0015_0_ex.jpg": ("train", 1, 1),
        "imgs/test/0001/0001_003_14_0303noon_0113_1.jpg": ("query", 10001, 14),
        "imgs/train/0040/0040_001_02_0302noon_0113_1.jpg": ("gallery", 10001, 2),
    }
    assert len(found.notices) == 1


def test_icfg_pedes_file_may_have_an_underscore(tmp_path):
    text_search(tmp_path, "icfg_pedes")
    (tmp_path / "ICFG-PEDES.json").rename(tmp_path / "ICFG_PEDES.json")
    assert len(scan("icfg_pedes", tmp_path).records) == 4


def test_rstpreid_has_cameras_in_its_names(tmp_path):
    found = scan("rstpreid", text_search(tmp_path, "rstpreid"))
    assert labels(found) == {
        "imgs/0000_c14_0031.jpg": ("train", 0, 14),
        "imgs/0000_c1_0004.jpg": ("train", 0, 1),
        "imgs/3901_c5_0022.jpg": ("query", 3901, 5),
        "imgs/3901_c7_0015.jpg": ("gallery", 3901, 7),
    }
    assert found.records[-1].sentences == ("Gray and blue.", "Brown shoes.")


def test_one_name_without_a_camera_makes_all_cameras_unknown(tmp_path):
    row = described("test", 3901, "holiday.jpg", "A woman.", path_key="img_path")
    root = text_search(tmp_path, "rstpreid", row)
    put(root, "imgs/holiday.jpg", first_seed=50)
    found = scan("rstpreid", root)
    assert {record.camid for record in found.records} == {UNKNOWN_CAMERA}
    assert "the names of 1 image do not have a camera, such as imgs/holiday.jpg" in found.notices[0]


def test_splits_by_rule_replace_those_of_the_dataset(tmp_path):
    found = scan("cuhk_pedes", text_search(tmp_path, "cuhk_pedes"), split="by_identity", train_fraction=0.25)
    assert {record.pid for record in found.records} == {1, 2, 12004, 12005}
    assert len({record.pid for record in found.records if record.split == "train"}) == 1
    assert all(record.sentences for record in found.records)
    assert not any("the first path" in notice for notice in found.notices)


def test_repeated_rows_describe_one_image(tmp_path):
    again = described("train", 1, "CUHK01/./0363004.png", "The same image.")
    found = scan("cuhk_pedes", text_search(tmp_path, "cuhk_pedes", again))
    record = next(record for record in found.records if record.path.endswith("0363004.png"))
    assert record.sentences == ("A man in a red coat.", "He wears a red coat and blue jeans.", "The same image.")
    assert "2 rows describe 1 image: the sentences of one path are put together" in found.notices
    assert found.rejected == []


def test_empty_sentences_are_left_out_and_blanks_are_joined(tmp_path):
    row = described("train", 2, "extra.jpg", " \t", "Two\nlines  and\u00a0blanks. ")
    root = text_search(tmp_path, "cuhk_pedes", row)
    put(root, "imgs/extra.jpg", first_seed=50)
    found = scan("cuhk_pedes", root)
    assert next(r.sentences for r in found.records if r.path == "imgs/extra.jpg") == ("Two lines and blanks.",)
    assert "1 empty sentence left out, such as in reid_raw.json row 10" in found.notices


def test_other_spellings_of_splits_and_identities(tmp_path):
    root = text_search(tmp_path, "cuhk_pedes", described(" Train ", "0002", "extra.jpg", "A dress."))
    put(root, "imgs/extra.jpg", first_seed=50)
    assert labels(scan("cuhk_pedes", root))["imgs/extra.jpg"] == ("train", 2, UNKNOWN_CAMERA)


# Rejected rows

BAD = [
    ("bad_row", "a string"),
    ("bad_row", None),
    ("bad_path", {"split": "train", "id": 1, "captions": ["A man."]}),
    ("bad_path", described("train", 1, "", "A man.") | {"file_path": 7}),
    ("bad_path", described("train", 1, "a\0b.jpg", "A man.")),
    ("bad_path", described("train", 1, "a\\b.jpg", "A man.")),
    ("bad_path", described("train", 1, "\ud800.jpg", "A man.")),
    ("outside_root", described("train", 1, "../reid_raw.json", "A man.")),
    ("outside_root", described("train", 1, "/etc/passwd", "A man.")),
    ("outside_root", described("train", 1, "leaves.jpg", "A man.")),
    ("missing", described("train", 1, "absent.jpg", "A man.")),
    ("not_a_file", described("train", 1, "CUHK01", "A man.")),
    ("not_a_file", described("train", 1, "", "A man.")),
    ("bad_split", described("training", 1, "CUHK01/0363004.png", "A man.")),
    ("bad_split", described("train", 1, "CUHK01/0363004.png", "A man.") | {"split": 1}),
    ("bad_pid", described("train", -1, "CUHK01/0363004.png", "A man.")),
    ("bad_pid", described("train", 1, "CUHK01/0363004.png", "A man.") | {"id": 1.0}),
    ("bad_pid", described("train", 1, "CUHK01/0363004.png", "A man.") | {"id": True}),
    ("bad_pid", described("train", 1, "CUHK01/0363004.png", "A man.") | {"id": "one"}),
    ("bad_pid", described("train", 10**18, "CUHK01/0363004.png", "A man.")),
    ("no_sentences", described("train", 1, "CUHK01/0363004.png")),
    ("no_sentences", described("train", 1, "CUHK01/0363004.png", "", "  ")),
    ("bad_sentences", described("train", 1, "CUHK01/0363004.png") | {"captions": None}),
    ("bad_sentences", described("train", 1, "CUHK01/0363004.png") | {"captions": "A man."}),
    ("bad_sentences", described("train", 1, "CUHK01/0363004.png") | {"captions": ["A man.", 5]}),
    ("bad_sentences", described("train", 1, "CUHK01/0363004.png", "A\0man.")),
    ("bad_sentences", described("train", 1, "CUHK01/0363004.png", "A man \ud83d.")),
]


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_rows_that_cannot_be_used_are_rejected_with_their_number(reason, row, tmp_path):
    text_search(tmp_path, "cuhk_pedes")
    (tmp_path / "imgs" / "leaves.jpg").symlink_to("/etc/passwd")
    before = scan("cuhk_pedes", tmp_path).records
    write(tmp_path, [*CUHK_PEDES, row])
    found = scan("cuhk_pedes", tmp_path)
    (one,) = found.rejected
    assert one.reason == reason
    assert one.detail.startswith("reid_raw.json row 10: ")
    one.detail.encode()
    assert found.records == before


def test_rows_that_contradict_each_other_are_all_rejected(tmp_path):
    other = [
        described("train", 2, "CUHK01/0363004.png", "Another person."),
        described("test", 12005, "CUHK03/1_1.png", "The same person."),
        described("train", 12005, "CUHK03/1_1.png", "Another split."),
    ]
    found = scan("cuhk_pedes", text_search(tmp_path, "cuhk_pedes", *other))
    assert [row.reason for row in found.rejected] == ["contradictory_rows"] * 5
    assert "rows 1 (train id 1), 10 (train id 2)" in found.rejected[0].detail
    assert labels(found)["imgs/CUHK03/1_2.png"][0] == "query"  # the first path that is left


# Broken files

BROKEN = [
    (b'[{"split": "train"},\n {"split": }]', r"is not valid JSON: Expecting value in line 2, column 12\. Copy it"),
    (b"", "is not valid JSON: Expecting value in line 1"),
    (b"[]{}", "is not valid JSON: Extra data"),
    (b'[{"captions": ["caf\xe9"]},\n\n]', r"is not UTF-8 text \(line 1\)"),
    (b'[\n{"captions": "\xff\xfe"}]', r"is not UTF-8 text \(line 2\)"),
    (b'{"images": []}', "must be a list with one object per image, such as"),
    (b'"text"', "must be a list"),
    (b"[" * 100_000, "cannot be read as JSON"),
    (b'[{"id": ' + b"9" * 5000 + b"}]", "cannot be read as JSON"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_file_is_one_clear_error(content, message, tmp_path):
    root = text_search(tmp_path, "cuhk_pedes")
    (root / "reid_raw.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        scan("cuhk_pedes", root)
    assert str(root / "reid_raw.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_not_an_error(tmp_path):
    root = text_search(tmp_path, "cuhk_pedes")
    text = (root / "reid_raw.json").read_bytes()
    expected = scan("cuhk_pedes", root).records
    (root / "reid_raw.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert scan("cuhk_pedes", root).records == expected


@pytest.mark.parametrize("reader", sorted(TEXT_SEARCH))
def test_wrong_folders_name_what_is_needed(reader, tmp_path):
    name = TEXT_SEARCH[reader][0]
    with pytest.raises(DataError, match=f"needs {name}.* and the folder imgs"):
        scan(reader, tmp_path)
    (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=f"has {name}, but not the folder imgs"):
        scan(reader, tmp_path)


# Published sizes

PUBLISHED = {
    "cuhk_pedes": {"train": (11003, 34054), "test": (1000, 3074), "sentences": 6156},
    "icfg_pedes": {"train": (3102, 34674), "test": (1000, 19848), "sentences": 19848},
    "rstpreid": {"train": (3701, 18505), "test": (200, 1000), "sentences": 2000},
}


def full_size(reader):
    """Return rows of the published size: images per identity as equal as possible."""
    rows = []
    for split, shift in (("train", 1), ("test", 20000)):
        identities, images = PUBLISHED[reader][split]
        extra = PUBLISHED[reader]["sentences"] - images if split == "test" else 0
        for number in range(images):
            texts = ("A.",) * (1 + extra // images + (number < extra % images))
            path = f"{split}{number}_c1_0.jpg"
            rows.append(Annotation("row", path, split, shift + number % identities, texts, 0))
    return rows


@pytest.fixture
def notices_of(tmp_path, monkeypatch):
    """Return a function that returns the notices about published sizes for rows whose images need not exist."""
    monkeypatch.setattr(readers, "image_path", lambda gate, path: path)

    def notices(reader, rows):
        monkeypatch.setattr(readers, "read_annotations", lambda *_: iter(rows))
        (tmp_path / "imgs").mkdir(exist_ok=True)
        write(tmp_path, [], TEXT_SEARCH[reader][0])
        return [notice for notice in scan(reader, tmp_path).notices if "published" in notice]

    return notices


@pytest.mark.parametrize("reader", sorted(PUBLISHED))
def test_sizes_are_the_published_ones(reader, notices_of):
    rows = full_size(reader)
    assert notices_of(reader, rows) == []
    (fewer,) = notices_of(reader, rows[1:])
    identities, images = PUBLISHED[reader]["train"]
    assert f"{images - 1:,} images of {identities:,} identities; published: {images:,} of {identities:,}" in fewer


def test_other_sentences_and_a_part_of_a_dataset_are_noticed(notices_of):
    rows = full_size("rstpreid")
    (few,) = notices_of("rstpreid", [*rows[:-1], rows[-1]._replace(sentences=("A.",))])
    assert few.startswith("rstpreid test: 1,999 sentences; published: 2,000. Results are not comparable")
    (part,) = notices_of("rstpreid", rows[: len(rows) // 4])
    assert part.startswith("4,876 of the 19,505 published images of rstpreid: results are not comparable")
    assert notices_of("rstpreid", rows[:100]) == []
