"""Records and facts as columns: they equal the objects that they stand for, in batches of any size."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.artifacts.contents import contents_of_images
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactStore
from data.columns.codes import CellCodes
from data.columns.records import BATCH_ROWS, ImageRecord, Records
from data.columns.rejected import Rejected, RejectedRows
from data.columns.source import ParquetRows
from data.datasets import DatasetConfig, scan_dataset
from data.images.check import Decoding
from data.index import facts as facts_module
from data.index.examine import Reading, examine
from data.index.facts import Decodings, Facts, FileFacts
from data.people import is_person
from data.schemas import IMAGES
from data.splits import SPLITS
from tests.helpers.data_trees import market, settle

ROWS_OF_A_PART = 16_384  # of a manifest, read at a time
SHAS = ["ab" * 31 + "00", "00" * 32, "ff" * 32, "12" * 32]  # the first two end in zero bytes


def some(count: int, seed: int = 0) -> list[ImageRecord]:
    rng = random.Random(seed)
    return [
        ImageRecord(
            path=f"{rng.choice('abcé')}/{number}.jpg",
            split=rng.choice(SPLITS),
            pid=rng.randrange(-1, 5),
            camid=rng.randrange(3),
            label=rng.choice(["", "anna", "bob"]),
            sentences=tuple(rng.choices(["A man.", "A hat."], k=rng.randrange(3))),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 20, BATCH_ROWS, 2 * BATCH_ROWS + 3])
def test_records_are_the_objects_that_were_added(count):
    rows = some(count)
    records = Records.of(rows)
    assert (list(records), len(records), records == rows, records == Records.of(rows)) == (rows, count, True, True)
    assert list(records.in_order()) == sorted(rows, key=lambda row: (row.split, row.path))
    assert [list(part) for part in records.batches()] == [
        rows[at : at + BATCH_ROWS] for at in range(0, count, BATCH_ROWS)
    ]
    assert records.people().tolist() == is_person([row.split for row in rows], [row.pid for row in rows]).tolist()
    assert records.has_sentences() == any(row.sentences for row in rows)
    assert records.has_labels() == any(row.label for row in rows)


def test_one_record_and_some():
    rows = some(5)
    records = Records.of(rows)
    assert [records[0], records[-1]] == [rows[0], rows[-1]]
    assert list(records[1:4]) == rows[1:4]
    with pytest.raises(IndexError):
        records[5]


@pytest.mark.parametrize("name", ["path", "split", "pid", "camid", "label", "sentences"])
def test_records_differ_in_any_field(name):
    other = {"path": "new", "split": "query", "pid": 9, "camid": 9, "label": "new", "sentences": ("New.",)}
    old = ImageRecord(path="a", split="train", pid=1, camid=1, label="anna")
    changed = ImageRecord(**{field: getattr(old, field) for field in old.__slots__} | {name: other[name]})
    assert Records.of([old]) != Records.of([changed])
    assert Records.of([old, changed]).differs(Records.of([old, old])).tolist() == [False, True]


def test_labels_are_compared_by_their_text():
    anna, bob = (ImageRecord(path="a", split="train", pid=1, camid=1, label=label) for label in ("anna", "bob"))
    assert Records.of([bob, anna])[1:] == Records.of([anna])
    assert Records.of([bob, anna])[1:] != Records.of([bob])


def test_facts_are_the_objects_that_were_set():
    rows = [Facts(1 << 40, 5, -1, sha256, 64, 128, reason, flat) for sha256, reason, flat in
            [(SHAS[0], "", 0), (SHAS[1], "truncated", 0), ("", "unreadable", 0), (SHAS[2], "", 1)]]  # fmt: skip
    facts = FileFacts.of(rows)
    assert (list(facts), facts == rows, facts[-1], facts.stamp(3)) == (rows, True, rows[-1], rows[3].stamp)
    assert list(FileFacts.joined([facts, facts[1:]]).take(np.array([5, 0]))) == [rows[2], rows[0]]
    assert facts.reasons().tolist() == [False, True, True, False]
    many = facts.take(np.arange(facts_module.BATCH_ROWS + 3) % len(facts))
    assert [len(part) for part in many.batches()] == [facts_module.BATCH_ROWS, 3]
    assert list(many) == [rows[at % len(rows)] for at in range(len(many))]


def test_decodings_are_found_by_digest():
    facts = FileFacts.of([Facts(1, 1, 1, sha256, at, 9, "blank" if at else "", 0) for at, sha256 in enumerate(SHAS)])
    found = Decodings(facts[:2], facts[2:])
    assert [found.get(sha256) for sha256 in SHAS] == [Decoding(at, 9, "blank" if at else "", 0) for at in range(4)]
    assert found.get("cd" * 32) is None
    assert Decodings().get(SHAS[0]) is None


def test_cells_of_any_type_have_codes_across_batches():
    cells = CellCodes()
    columns = [pa.array(["1", None]), pa.array([1, 2]), pa.array([1.0, float("nan"), None]), pa.array([2]), pa.nulls(1)]
    assert [cells.encode(column).tolist() for column in columns] == [[0, 1], [2, 3], [4, 5, 1], [3], [1]]
    assert [repr(value) for value in cells.values] == ["'1'", "None", "1", "2", "1.0", "nan"]


def test_content_digests_of_columns_are_those_of_rows(tmp_path):
    rng = random.Random(1)
    rows = [
        {"path": f"{n}", "split": rng.choice(SPLITS), "pid": rng.randrange(-1, 3), "camid": rng.randrange(2)}
        | {"sha256": rng.choice(SHAS), "size": 1, "width": 1, "height": 1}
        for n in range(200)
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=30)
    expected = contents_of_images(table)
    assert (
        contents_of_images(table, block=10) == contents_of_images(ParquetRows(tmp_path / "images.parquet")) == expected
    )


@pytest.mark.parametrize("filler", [0, ROWS_OF_A_PART])
def test_rows_of_a_manifest_that_repeat_across_batches(tmp_path, filler):
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    rows = ["d", "a", "b", *["x"] * filler, "./a", "c", "a", "missing", "d"]
    lines = "".join(f"{name}{'' if len(name) > 3 else '.jpg'},train,{ord(name[-1])}\n" for name in rows)
    (tmp_path / "manifest.csv").write_text(f"path,split,pid\n{lines}")
    found = scan_dataset(DatasetConfig(reader="manifest", root=str(tmp_path)))
    assert [(record.path, record.pid) for record in found.records] == [(f"{name}.jpg", ord(name)) for name in "abcd"]
    rejected = [(row.path, row.reason, row.detail.split(":")[0]) for row in found.rejected if row.path != "x.jpg"]
    assert len(found.rejected) - len(rejected) == filler
    assert rejected == [
        ("./a.jpg", "duplicate_row", f"row {filler + 4}"),
        ("a.jpg", "duplicate_row", f"row {filler + 6}"),
        ("d.jpg", "duplicate_row", f"row {filler + 8}"),
        ("missing", "missing", f"row {filler + 7}"),
    ]


def test_a_path_that_lists_name_often_is_recalled_each_time(tmp_path):
    root, store = market(tmp_path / "set"), ArtifactStore(tmp_path / "store")
    settle()
    listed = [str(path.relative_to(root)) for path in sorted(root.rglob("*.jpg"))]
    how = Reading(max_pixels=10_000, workers=1)
    first = examine(root, pa.array(listed, pa.large_string()), store.memo, how)
    rows = np.arange(BATCH_ROWS + 5) % len(listed)
    again = examine(root, pa.array(listed, pa.large_string()).take(pa.array(rows)), store.memo, how)
    assert (first.n_unsettled, again.n_read, again.facts) == (0, 0, first.facts.take(rows))


def test_rejected_rows_are_the_objects_that_were_added():
    rows = [Rejected(f"{number}", "missing", f"row {number}") for number in range(BATCH_ROWS + 5)]
    found = RejectedRows.of(reversed(rows))
    assert (len(found), found[0], found[-2:], found == rows[::-1]) == (len(rows), rows[-1], rows[1::-1], True)
    assert list(found.in_order()) == sorted(rows)
    assert found.in_order().digest() == digest([list(row) for row in sorted(rows)])
    assert RejectedRows.of([]).digest() == digest([])


def test_rejected_rows_are_sorted_counted_and_compared_as_objects_are():
    rows = [Rejected("\uffff", "blank"), Rejected("\U0001f600", "blank", 'a "b"\n'), Rejected("a", "missing", "é")]
    some = RejectedRows.of([rows[1], rows[0], rows[1]]).in_order()
    assert some == sorted([rows[1], rows[0], rows[1]])
    assert (some.distinct(), RejectedRows.of([]).distinct()) == (rows[:2], [])
    whole = some.distinct().joined_in_order(RejectedRows.of(rows[2:]))
    assert (whole, whole.joined_in_order(RejectedRows.of([]))) == (sorted(rows), sorted(rows))
    assert (whole.counts(), whole.first("missing"), whole.digest()) == (
        {"blank": 2, "missing": 1},
        rows[2],
        digest([list(row) for row in sorted(rows)]),
    )
    other = RejectedRows.of([rows[0], rows[2]._replace(detail="other"), Rejected("b", "blank")])
    assert whole.odd_paths(other) == other.odd_paths(whole) == ["a", "b", "\U0001f600"]
    assert whole.odd_paths(whole) == []
