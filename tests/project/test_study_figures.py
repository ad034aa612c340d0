"""Every figure of docs/study.md is in the results of the study, which are kept beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from flows.report.scores import signed
from flows.study.statistics.scores import COLUMNS
from tests.helpers.places import REPO

PAGE = REPO / "docs" / "study.md"
RESULTS = sorted((REPO / "docs" / "study").glob("*.csv"))
FIGURE = re.compile(r"[+−±]?\d+\.\d( ± \d+\.\d| \([+−±]\d+\.\d to [+−±]\d+\.\d\))")


def figures_of(row: dict[str, str]) -> Iterator[str]:
    """Yield the figures of a row of table.csv or differences.csv as the page writes them."""
    for key, _ in COLUMNS:
        mean, deviation, low, high = (row[f"{key}_{part}"] for part in ("mean", "deviation", "low", "high"))
        if mean and "question" in row and low:
            yield f"{signed(float(mean))} ({signed(float(low))} to {signed(float(high))})"
        elif mean and deviation:
            yield f"{float(mean):.1f} ± {float(deviation):.1f}"


def known_figures() -> set[str]:
    return {
        figure
        for file in RESULTS
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())
        for figure in figures_of(row)
    }


def test_the_results_are_kept_with_the_page():
    assert [file.name for file in RESULTS] == [
        "differences.csv",
        "pku_reid_differences.csv",
        "pku_reid_table.csv",
        "table.csv",
    ]


def test_every_figure_is_a_result():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())  # a line may end within a figure
    shown = {found.group() for found in FIGURE.finditer(text)}
    assert len(shown) > 100
    assert shown - known_figures() == set()
