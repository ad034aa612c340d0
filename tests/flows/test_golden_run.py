"""A small run is frozen: the captions of every image, the figures of the evaluation and the text of the report.

    python -m tests.flows.test_golden_run

rewrites the golden files after a change that is meant to alter them (which CHANGELOG.md then names). Captions and words
are compared exactly. Numbers may differ by 1 % and 0.005, because processors round sums differently.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.summary import RunSummary
from tests.helpers.page_text import page_lines
from tests.helpers.places import GOLDEN, require_pinned_pillow
from tests.helpers.small_runs import demo_run

RUN = GOLDEN / "run"

DECIMAL = re.compile(r"\d+\.\d+")
# Speed, library versions, digests of files that contain them or weights, and the figures of fused mode: after two
# steps of training its scores lie so close together that rounding decides their order.
VOLATILE = [
    (re.compile(r"(steps), [\d.]+ m?s$"), r"\1, TIME"),
    (re.compile(r"(images per second) \| .*"), r"\1 | SPEED"),
    (re.compile(r"^(python|accelerate|numpy|open_clip_torch|safetensors|torch) \| \S+$"), r"\1 | VERSION"),
    (re.compile(r"^(evaluation \| evaluate) \| .*"), r"\1 | OF WEIGHTS"),
    (re.compile(r"^((?:\w+ \| ){2}[0-9a-f]{32}) \| [0-9a-f]{32}$"), r"\1 | CONTENT"),
    (re.compile(r"^(trained \| fused \||trained, fused) .*\d.*"), r"\1 CLOSE"),
]

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def run(finished) -> RunSummary:
    """Return the run; its images are drawn and encoded by Pillow."""
    require_pinned_pillow()
    return finished[1]


def captions(run: RunSummary) -> list[dict[str, Any]]:
    """Return captions.parquet as rows; a column without a value is left out of its row."""
    table = pd.read_parquet(run["caption"].artifact.folder / "captions.parquet")
    rows = json.loads(table.to_json(orient="records", double_precision=6))
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def columns(run: RunSummary) -> list[str]:
    """Return the columns of captions.parquet in their order."""
    return list(pd.read_parquet(run["caption"].artifact.folder / "captions.parquet").columns)


def metrics(run: RunSummary) -> dict[str, Any]:
    """Return metrics.json without its prose and without the figures of fused scores (see `VOLATILE`)."""
    found = json.loads((run["evaluate"].artifact.folder / "metrics.json").read_text())
    del found["protocol"]["description"], found["text_to_image"]["description"]
    for result in found["results"]:
        if result["mode"] == "fused":
            result.update({key: None for key in result if key in {"cmc", "mAP", "mINP", "rank1", "rank5", "rank10"}})
    return found


def report(run: RunSummary) -> list[str]:
    """Return the report's text with a placeholder for everything that changes from run to run."""
    lines = page_lines((run["report"].artifact.folder / "report.html").read_text(encoding="utf-8"))
    for pattern, replacement in VOLATILE:
        lines = [pattern.sub(replacement, line) for line in lines]
    return lines


def numbers(lines: list[str]) -> list[float]:
    """Return the decimal numbers of the lines in order."""
    return [float(number) for line in lines for number in DECIMAL.findall(line)]


def words(lines: list[str]) -> list[str]:
    """Return the lines with a placeholder for every decimal number."""
    return [DECIMAL.sub("#", line) for line in lines]


def close(expected: Any) -> Any:
    """Return what equals `expected` up to the rounding of sums."""
    if isinstance(expected, dict):
        return {key: close(value) for key, value in expected.items()}
    if isinstance(expected, list):
        return [close(value) for value in expected]
    return pytest.approx(expected, rel=0.01, abs=0.005) if isinstance(expected, float) else expected


def golden_json(name: str) -> Any:
    return json.loads((RUN / name).read_text(encoding="utf-8"))


def golden_report() -> list[str]:
    return (RUN / "report.txt").read_text(encoding="utf-8").splitlines()


def test_every_caption_is_the_same(run):
    assert columns(run) == golden_json("captions.json")["columns"]
    assert captions(run) == golden_json("captions.json")["rows"]


def test_the_figures_are_the_same(run):
    assert metrics(run) == close(golden_json("metrics.json"))


def test_the_report_reads_the_same(run):
    assert words(report(run)) == words(golden_report())


def test_the_report_shows_the_same_numbers(run):
    assert numbers(report(run)) == close(numbers(golden_report()))


def write_golden(run: RunSummary) -> None:
    """Write the golden files from a finished run."""
    for name, value in (
        ("captions.json", {"columns": columns(run), "rows": captions(run)}),
        ("metrics.json", metrics(run)),
    ):
        (RUN / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RUN / "report.txt").write_text("\n".join(report(run)) + "\n", encoding="utf-8")


def main() -> None:
    """Make the small run and write the golden files."""
    from prefect.testing.utilities import prefect_test_harness

    with tempfile.TemporaryDirectory() as home, prefect_test_harness(server_startup_timeout=120):
        write_golden(demo_run(Path(home)))


if __name__ == "__main__":
    main()
