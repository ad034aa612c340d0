"""Filters of a gallery: what they select, and where a wrong one is wrong."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from data.errors import ConfigError
from reid.gallery.entry import KINDS, Entry, table_of
from reid.gallery.where import parse_where

ENTRIES = [
    Entry(
        path="/a.jpg",
        sha256="0",
        label="Ann Lee",
        camera=1,
        time=datetime(2026, 1, 1, 8),
        attributes={"upper_color": "red", "carrying": "none"},
        confidences={"upper_color": 0.8, "carrying": 0.9},
    ),
    Entry(path="/b.jpg", sha256="1", label="O'Brien", camera=2, time=datetime(2026, 1, 31, 23, 59)),
    Entry(path="/c.jpg", sha256="2", attributes={"upper_color": "blue"}, confidences={"upper_color": 0.3}),
    Entry(path="/d.jpg", sha256="3", label="unknown", camera=3, time=datetime(2026, 2, 1)),
]


def rows(text: str) -> list[int]:
    return parse_where(text).mask(table_of(ENTRIES)).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera=1", [0]),
        ("CAMERA == 1", [0]),
        ("camera != 1", [1, 3]),
        ("not camera=1", [1, 3]),
        ("camera>1 and camera<=3", [1, 3]),
        ("camera in (1,3)", [0, 3]),
        ("not camera in (1, 3)", [1]),
        ("camera=1.0", [0]),
        ("camera=unknown", [2]),
        ("camera != Unknown", [0, 1, 3]),
        ("label=unknown", [2]),
        ("label='unknown'", [3]),
        ("label in (unknown)", [2]),
        ("label in ('unknown')", [3]),
        ("label in (Unknown, 'Ann Lee')", [0, 2]),
        ("not label in (unknown, 'Ann Lee')", [1, 3]),
        ("upper_color=RED", [0]),
        ("upper_color in (Blue, RED)", [0, 2]),
        ("upper_color != Red", [2]),
        ("label='ann lee'", []),
        ("path=/B.jpg", []),
        ("label='Ann Lee'", [0]),
        ('label="O\'Brien"', [1]),
        ("label='O''Brien'", [1]),
        ("upper_color=red or camera=2 and upper_color=red", [0]),
        ("(upper_color=red or camera=2) and camera>=2", [1]),
        ("not (upper_color=red or camera=2)", []),
        ("not (upper_color=red or camera=2) or camera=3", [3]),
        ("carrying=none", [0]),
        ("time < 2026-01-31", [0]),
        ("time <= 2026-01-31", [0, 1]),
        ("time > 2026-01-31", [3]),
        ("time >= 2026-02-01", [3]),
        ("time = 2026-01-31", [1]),
        ("time != 2026-01-31", [0, 3]),
        ("time in (2026-01-31, 20260201)", [1, 3]),
        ("time = 2026-01-01T08:00", [0]),
        ("time = '2026-01-01 08:00'", [0]),
        ("time = 2026-01-01T10:00+02:00", [0]),
        ("time <= 9999-12-31", [0, 1, 3]),
        ("confidence >= 0.8", [0]),
        ("confidence > 0.8", []),
        ("carrying_confidence >= 0.9", [0]),
        ("confidence < 1", [0, 2]),
        ("path=/b.jpg", [1]),
        ("camera=3 and upper_color=red and time >= 2026-01-01 and confidence >= 0.8", []),
        ("  camera = 1  ", [0]),
    ],
)
def test_a_filter_selects(text, expected):
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [
        ("", 1, "expected a comparison, such as camera=3; the filter ends here"),
        ("   ", 1, "expected a comparison"),
        ("colour=red", 1, "the column 'colour' does not exist"),
        ("camera=1 and upper_colour=red", 14, "the column 'upper_colour' does not exist (did you mean upper_color?)"),
        ("camera=", 8, "expected a value for the column camera; put values with blanks or signs in quotes"),
        ("camera=red", 8, "the column camera needs a number, but 'red' is not"),
        ("camera=nan", 8, "the column camera needs a number, but 'nan' is not"),
        ("time >= yesterday", 9, "the column time needs a time, such as 2026-01-31"),
        ("label < Ann", 7, "the column label is text, which cannot be compared by <; use =, != or in"),
        ("label=Ann Lee", 11, "expected and, or, or the end of the filter; found 'Lee'"),
        ("label='Ann", 7, "the quote is not closed"),
        ("camera=1 and", 13, "expected a column; the columns are path, sha256, label, camera, time"),
        ("(camera=1", 10, "expected and, or, or a closing parenthesis; the filter ends here"),
        ("camera=1)", 9, "expected and, or, or the end of the filter; found ')'"),
        ("camera in 1", 11, "expected a list in parentheses, such as camera in (a, b); found '1'"),
        ("camera in (1 2)", 14, "expected a comma or a closing parenthesis; found '2'"),
        ("camera in ()", 12, "expected a value for the column camera"),
        ("camera > unknown", 10, "unknown can only follow = and !="),
        ("camera ! 3", 8, "'!' is unexpected"),
        ("camera 3", 8, "expected one of = != < <= > >= or in, after the column camera; found '3'"),
        ("'camera'=3", 1, "expected a column"),
        ("(" * 60 + "camera=1" + ")" * 60, 51, "expected at most 50 parentheses and nots inside each other"),
    ],
)
def test_a_wrong_filter_names_position_and_columns(text, position, problem):
    with pytest.raises(ConfigError, match=re.escape(f"filter {text!r}, position {position}: {problem}")):
        parse_where(text)


def test_an_unknown_column_lists_those_there_are():
    with pytest.raises(ConfigError) as error:
        parse_where("colour=red")
    assert str(error.value).endswith(f"the columns are {', '.join(KINDS)}")
