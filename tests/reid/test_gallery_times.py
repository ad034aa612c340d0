"""Times from cells and from paths."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pandas as pd
import pytest

from data.errors import ConfigError, DataError
from reid.gallery.times import PathTimes, parse_time, read_time

NOON = datetime(2026, 1, 31, 12)


@pytest.mark.parametrize(
    "cell",
    [
        "2026-01-31T12:00:00",
        " 2026-01-31 12:00 ",
        "2026-01-31T13:00:00+01:00",
        "2026-01-31T12:00:00Z",
        "20260131T120000",
        NOON,
        NOON.replace(tzinfo=UTC),
        datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))),
        pd.Timestamp(NOON),
    ],
)
def test_a_time_is_read_in_utc(cell):
    assert read_time(cell, "row 1") == NOON


@pytest.mark.parametrize("cell", [None, "", "  ", "NaN", "null", "NaT", float("nan"), pd.NaT])
def test_an_empty_cell_is_unknown(cell):
    assert read_time(cell, "row 1") is None


def test_a_date_is_its_midnight():
    assert read_time(date(2026, 1, 31), "") == read_time("2026-01-31", "") == parse_time("2026-01-31")
    assert parse_time("2026-01-31") == datetime(2026, 1, 31)


@pytest.mark.parametrize("cell", ["yesterday", "12:00", "31.01.2026", 1_764_000_000, 3.5, "2026-02-30", True])
def test_anything_else_is_refused_with_its_place(cell):
    with pytest.raises(DataError, match=r"row 7: .* is not a time; write 2026-01-31, "):
        read_time(cell, "row 7")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("%Y-%m-%d_%H%M%S", "/cam1/2026-01-31_120000.jpg", NOON),
        ("%Y%m%d%H", "/2026013112/1.jpg", NOON),
        ("%Y/%m/%d", "/x/2026/01/31/7.jpg", datetime(2026, 1, 31)),
        ("%y.%j", "/26.031.png", datetime(2026, 1, 31)),
        ("%Y-%m-%d (%H.%M)", "/2026-01-31 (12.00).png", NOON),
        ("%Y%m%d", "/120260131.jpg", None),
        ("%Y%m%d", "/202601310.jpg", None),
        ("%Y-%m-%d", "/2026-02-30.jpg", None),
        ("%Y-%m-%d", "/nothing.jpg", None),
    ],
)
def test_a_pattern_finds_the_time_in_a_path(pattern, path, expected):
    assert PathTimes(pattern)(path) == expected


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("%Y-%m-%d %Z", "%Z at position 10 is unknown; use each of %Y"),
        ("%Y-%m-%d-%d", "%d at position 10 is repeated"),
        ("%Y-%m-%", "% at position 7 is unknown"),
        ("%H%M%S", "does not contain a date; for example %Y-%m-%d_%H%M%S"),
        ("", "does not contain a date"),
    ],
)
def test_a_pattern_without_a_date_is_refused(pattern, problem):
    with pytest.raises(ConfigError) as error:
        PathTimes(pattern)
    assert problem in str(error.value)
