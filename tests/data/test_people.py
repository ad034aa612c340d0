"""The rule for who is a person, and that every stage uses the same function."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from captioning.audit.agreement import people
from data.columns.records import ImageRecord, Records
from data.people import UNKNOWN_CAMERA, IdentityName, cameras_known, identity_names, is_junk, is_person
from data.readers.base import Counts, compare_counts, number_cameras, number_labels
from tests.helpers.image_rows import image_rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("train", 1), ("gallery", 0), ("gallery", -1)], [True, False, False]),
        ([("train", 0), ("gallery", 0), ("gallery", -1)], [True, True, False]),
        ([("query", 0), ("gallery", 0), ("train", -1)], [True, True, False]),
        ([("query", -1), ("gallery", 0), ("gallery", 3)], [False, False, True]),
        ([], []),
    ],
)
def test_zero_is_a_person_unless_only_the_gallery_has_it(rows, expected):
    splits, pids = [row[0] for row in rows], [row[1] for row in rows]
    assert is_person(splits, pids).tolist() == expected
    assert is_person(np.array(splits, dtype=object), np.array(pids, dtype=np.int64)).tolist() == expected
    assert is_junk(pids).tolist() == [pid == -1 for pid in pids]
    assert people(pd.DataFrame({"split": splits, "pid": pids})).tolist() == expected


def test_cameras_are_unknown_if_one_is():
    assert cameras_known([0, 1])
    assert cameras_known([])
    assert not cameras_known([UNKNOWN_CAMERA] * 2)
    assert not cameras_known(np.array([1, UNKNOWN_CAMERA]))


@pytest.mark.parametrize(
    ("label", "text", "page"),
    [
        ("", "3", "3"),
        ("anna", "anna (pid 3)", "<bdi>anna</bdi> (pid&nbsp;3)"),
        ("7", "7 (pid 3)", "<bdi>7</bdi> (pid&nbsp;3)"),
        ('<b>"x"&', '<b>"x"& (pid 3)', "<bdi>&lt;b&gt;&quot;x&quot;&amp;</bdi> (pid&nbsp;3)"),
        ("first\nsecond\t\x1b[31m", "first second [31m (pid 3)", "<bdi>first second [31m</bdi> (pid&nbsp;3)"),
        ("\u202eanna\u2066", "anna (pid 3)", "<bdi>anna</bdi> (pid&nbsp;3)"),
        ("שלום", "שלום (pid 3)", "<bdi>שלום</bdi> (pid&nbsp;3)"),
        (" \n\u2028\ud800", "3", "3"),
        ("a" * 24, f"{'a' * 24} (pid 3)", f"<bdi>{'a' * 24}</bdi> (pid&nbsp;3)"),
        ("a" * 200, f"{'a' * 23}… (pid 3)", f'<bdi title="{"a" * 200}">{"a" * 23}…</bdi> (pid&nbsp;3)'),
        (
            f"{'a' * 22} {'b' * 9}",
            f"{'a' * 22}… (pid 3)",
            f'<bdi title="{"a" * 22} {"b" * 9}">{"a" * 22}…</bdi> (pid&nbsp;3)',
        ),
        (
            f"{'a' * 20}👩‍👩‍👧‍👦 family",
            f"{'a' * 20}… (pid 3)",
            f'<bdi title="{"a" * 20}👩‍👩‍👧‍👦 family">{"a" * 20}…</bdi> (pid&nbsp;3)',
        ),
        (f"{'a' * 22}q\u0301{'b' * 9}", f"{'a' * 22}… (pid 3)", None),
    ],
)
def test_an_identity_is_written_with_its_label(label, text, page):
    name = IdentityName(3, label)
    assert str(name) == text
    assert page is None or name.__html__() == page


def test_an_identity_is_named_by_the_label_of_all_of_its_images():
    name = identity_names([1, 1, 0, 0, 4], ["anna", "anna", "x", "y", ""])
    assert [str(name(pid)) for pid in (1, 0, 4, 99)] == ["anna (pid 1)", "0", "4", "99"]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["10", "2", "02"], {"10": 10, "2": 2, "02": 2}),
        (["north", "east", "north"], {"east": 1, "north": 2}),
        (["1", "b"], {"1": 1, "b": 2}),
        (["9" * 20], {"9" * 20: 1}),
        ([], {}),
    ],
)
def test_cameras_keep_their_numbers_if_all_are_numbers(names, numbers):
    assert number_cameras(names) == number_cameras(reversed(names)) == numbers


def test_labels_are_numbered_from_1_in_sorted_order():
    assert number_labels(["Bob", "Alice", "2", "10", "Bob"]) == {"10": 1, "2": 2, "Alice": 3, "Bob": 4}


def test_a_training_uses_identity_zero_and_no_junk():
    rows = image_rows(["train", "query", "train", "train"], [0, 4, -1, 7], [0] * 4)
    assert rows.of_split("train").tolist() == [0, 3]


def test_published_identities_are_counted_by_the_same_rule():
    def notices(first):
        records = [ImageRecord(path=f"{pid}", split="train", pid=pid, camid=0) for pid in range(first, first + 5)]
        records += [ImageRecord(path=f"g{n}", split="gallery", pid=first - 1, camid=0) for n in range(2)]
        return compare_counts("x", Records.of(records), {"train": Counts(5, 5)})

    assert notices(0) == []
    assert notices(1) == []
