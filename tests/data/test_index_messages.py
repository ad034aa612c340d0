"""The rules of an index alone, on hand-written records: the images that they name, and the exact messages."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from data.columns.records import ImageRecord, Records
from data.columns.rejected import Rejected, RejectedRows
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.facts import Facts, FileFacts
from data.index.rules import check_index, identities, unusable
from data.readers.base import Scan
from data.splits import SPLITS

CONFIG = DatasetConfig(reader="manifest", root="/data/set", name="People")


def fact(content: str = "", *, width: int = 64, height: int = 128, reason: str = "", flat: int = 0) -> Facts:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return Facts(1, 1, 1, sha256, width, height, reason, flat)


def record(path: str, split: str, pid: int) -> ImageRecord:
    return ImageRecord(path=path, split=split, pid=pid, camid=1)


def scan(**changes) -> Scan:
    values = {
        "name": "manifest",
        "version": "",
        "root": Path("/data/set"),
        "records": Records.of([]),
        "rejected": RejectedRows.of([]),
    }
    return Scan(**{**values, "notices": [], "n_junk": 0, **changes})


WHOLE = [("a", "train", 5), ("b", "query", 6), ("c", "gallery", 6)]


def checked(*more, rows=WHOLE, config=CONFIG, rejected=(), flat=(), **changes) -> list[str]:
    """Return the notices for `rows` and `more`: (path, split, pid) and, if it is not the path, the digest."""
    rows = [*rows, *more]
    records = Records.of(record(*row[:3]) for row in rows)
    facts = FileFacts.of([fact(row[3] if len(row) > 3 else row[0], flat=row[0] in flat) for row in rows])
    return check_index(config, scan(**changes), records, facts, RejectedRows.of(rejected).in_order())


def refused(*more, **changes) -> str:
    with pytest.raises(DataError) as error:
        checked(*more, **changes)
    return str(error.value)


def test_identities_are_the_people_of_each_split():
    rows = [("a", "train", 5), ("b", "train", 7), ("c", "query", 6), ("d", "gallery", 6), ("e", "gallery", 8)]
    nobody = [("f", "gallery", 0), ("g", "gallery", -1)]
    records = Records.of(record(*row) for row in rows + nobody)
    assert identities(records) == {"train": {5, 7}, "query": {6}, "gallery": {6, 8}}
    assert identities(Records.of([])) == {"train": set(), "query": set(), "gallery": set()}


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (8, 8, None),
        (8, 80, None),
        (80, 8, None),
        (7, 8, ("too_small", "7 x 8 pixels; a side is shorter than data.min_side=8")),
        (70, 7, ("too_small", "70 x 7 pixels; a side is shorter than data.min_side=8")),
        (8, 81, ("bad_aspect", "8 x 81 pixels; the sides differ by more than data.max_aspect=10 times")),
        (81, 8, ("bad_aspect", "81 x 8 pixels; the sides differ by more than data.max_aspect=10 times")),
    ],
)
def test_the_limits_of_size_and_aspect_are_inclusive(width, height, expected):
    assert unusable(CONFIG, fact(width=width, height=height)) == expected


def test_a_fractional_limit_is_shown_as_set():
    config = CONFIG.model_copy(update={"min_side": 3, "max_aspect": 2.5})
    assert unusable(config, fact(width=4, height=10)) is None
    reason, detail = unusable(config, fact(width=4, height=11))
    assert (reason, detail) == ("bad_aspect", "4 x 11 pixels; the sides differ by more than data.max_aspect=2.5 times")


def test_what_the_decoder_found_comes_first():
    assert unusable(CONFIG, fact(width=1, height=1, reason="truncated")) == (
        "truncated",
        "the file is truncated or damaged",
    )


def test_a_complete_index_has_no_notices():
    assert checked() == []


def test_notices_of_the_reader_junk_and_rejected_files_in_this_order():
    rejected = [
        Rejected("x.jpg", "truncated", "cut"),
        Rejected("", "no_path", "line 3"),
        Rejected("y.jpg", "truncated", "cut too"),
    ]
    assert checked(rejected=rejected, notices=["said by the reader"], n_junk=1234) == [
        "said by the reader",
        "1,234 junk image(s) (pid -1) left out, because no metric counts them",
        "3 file(s) or row(s) rejected: 1 no_path (such as a row without path: line 3); 2 truncated (such as x.jpg: "
        "cut); rejected.parquet lists them all",
    ]


def test_no_usable_image_at_all():
    assert refused(rows=[]) == (
        "the dataset People in /data/set has no usable images: no file name matches. Check data.root and "
        "data.reader (manifest)"
    )
    assert refused(rows=[], rejected=[Rejected("x.jpg", "blank", "see-through")]) == (
        "the dataset People in /data/set has no usable images: 1 blank (such as x.jpg: see-through). Check data.root "
        "and data.reader (manifest)"
    )


def test_empty_splits():
    assert checked(rows=WHOLE[:1]) == checked(rows=WHOLE[1:]) == [], "stages check what they need themselves"
    every = CONFIG.model_copy(update={"require_splits": SPLITS})
    end = " Add images there, or, if no stage needs them, set data.require_splits="
    start = "the dataset People in /data/set: no usable image in "
    assert refused(rows=WHOLE[:1], config=every) == f'{start}query, gallery.{end}["train"]'
    assert refused(rows=WHOLE[1:], config=every, rejected=[Rejected("x.jpg", "blank", "see-through")]) == (
        f'{start}train. Rejected: 1 blank (such as x.jpg: see-through).{end}["query","gallery"]'
    )
    assert checked(rows=WHOLE[:1], config=CONFIG.model_copy(update={"require_splits": ("train",)})) == []


def test_identities_on_both_sides_are_shown_up_to_three():
    more = [(f"t{pid}", "train", pid) for pid in (9, 8, 7, 6)] + [(f"g{pid}", "gallery", pid) for pid in (7, 8, 9)]
    more.append(("t6 again", "train", 6))
    assert refused(*more) == (
        "the dataset People in /data/set: training shares 4 identities with query or gallery, such as "
        "6 (train: t6, query: b); 7 (train: t7, gallery: g7); 8 (train: t8, gallery: g8). Test identities must not "
        "occur in training: move each to one side, or give different people different numbers"
    )


def test_cameras_are_all_known_or_all_unknown():
    def with_cameras(*cameras: int) -> list[str]:
        rows = [("a", "train", 5), ("b", "query", 6), ("c", "gallery", 6)]
        records = Records.of(replace(record(*row), camid=camera) for row, camera in zip(rows, cameras, strict=True))
        return check_index(CONFIG, scan(), records, FileFacts.of([fact("a"), fact("b"), fact("c")]), [])

    assert with_cameras(-1, -1, -1) == with_cameras(0, 1, 2) == []
    with pytest.raises(DataError) as error:
        with_cameras(1, -1, -1)
    assert str(error.value) == (
        "the dataset People in /data/set: the camera of 2 of 3 images is unknown, such as b. Give every image a "
        "camera, or none"
    )


def test_identity_zero_on_both_sides_is_explained():
    text = refused(("t0", "train", 0), ("g0", "gallery", 0))
    assert text.endswith(
        "such as 0 (train: t0, gallery: g0). Test identities must not occur in training: move each to one side, or "
        "give different people different numbers. 0 is a distractor only if it occurs nowhere but in the gallery"
    )


def test_equal_bytes_of_two_people_are_refused_or_get_a_notice():
    # d is a copy of a, e and f of b, g of c; h shows the same person as a.
    more = [("d", "train", 3, "a"), ("e", "query", 7, "b"), ("f", "gallery", 7, "b"), ("g", "gallery", 8, "c")]
    more += [("h", "train", 5, "a")]
    told = (
        "4 image(s) are identical to an image of another identity, such as a (pid 5) and d (pid 3); b (pid 6) and "
        "e (pid 7); b (pid 6) and f (pid 7)"
    )
    assert refused(*more) == (
        f"the dataset People in /data/set: {told}. Correct the labels, or set data.allow_identical=true to only get "
        "a notice"
    )
    assert checked(*more, config=CONFIG.model_copy(update={"allow_identical": True}))[-1] == told


def test_equal_bytes_in_query_and_gallery():
    more = [("d", "gallery", 6, "b"), ("e", "gallery", 6, "b"), ("f", "query", 6, "b")]
    assert checked(*more) == [
        "2 gallery image(s) are identical to a query, such as d (gallery) and b (query), which makes the "
        "evaluation too easy. Remove one of each pair"
    ]


def test_equal_bytes_of_a_distractor_and_a_person():
    more = [("d", "gallery", 0, "c"), ("e", "gallery", 0, "a"), ("f", "gallery", -1, "a"), ("g", "gallery", 0, "g")]
    assert checked(*more) == [
        "2 distractor(s) are identical to an image of a known person, such as d (gallery) and c (gallery), and "
        "would count as errors. Remove them, or correct their pid"
    ]


def test_copies_within_one_split_and_of_junk_get_no_notice():
    more = [("d", "train", 5, "a"), ("e", "gallery", 6, "c"), ("f", "gallery", -1, "b")]
    assert checked(*more) == []


def test_images_of_one_color_get_a_notice():
    assert checked(flat=("b", "c")) == [
        "2 image(s) are of one color, such as b. They are used, but do not show a person"
    ]


def test_all_problems_are_raised_together_and_notices_are_not_mixed_in():
    every = CONFIG.model_copy(update={"require_splits": SPLITS})
    text = refused(rows=[("a", "train", 6), ("b", "query", 6, "x"), ("c", "query", 7, "x")], config=every, n_junk=3)
    assert [line[:20] for line in text.splitlines()] == [
        "the dataset People i",
        "  - no usable image ",
        "  - training shares ",
        "  - 1 image(s) are i",
    ]
    assert text.startswith("the dataset People in /data/set: 3 problems\n")
