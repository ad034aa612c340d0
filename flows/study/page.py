"""What a study leaves in its folder: every run as Parquet, tables, drawings, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from data.files import write_table, write_text
from flows.report.page import page_environment
from flows.report.scores import duration
from flows.report.stage import without_places
from flows.study.plots import Plot, plots
from flows.study.table import METRICS, RUNS, Difference, Line, Row, differences, table, unfinished
from flows.study.text import difference_text, differences_csv, markdown, mean_text, means_csv, verdict

PAGE: Final = "study.html"
MARKDOWN: Final = "study.md"
RUNS_FILE: Final = "runs.parquet"
_GROUP_TITLES: Final = {
    "main": "Methods and controls",
    "queries": "CLIP-SCGI over K",
    "depth": "CLIP-SCGI over depth",
    "why": "Further controls",
}


def write_results(folder: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write runs.parquet, table.csv, differences.csv, study.md, study.html and plots/*.svg.

    rows: of runs.parquet. settings: plain JSON of the recipe and the study's config, shown on the page.
    """
    lines, answers = table(rows), differences(rows)
    drawings = plots(rows, lines, answers)
    write_table(folder / RUNS_FILE, pa.Table.from_pylist([dict(row) for row in rows], schema=RUNS), RUNS)
    write_text(folder / "table.csv", means_csv(lines))
    write_text(folder / "differences.csv", differences_csv(answers))
    write_text(folder / MARKDOWN, markdown(lines, answers, rows))
    write_text(folder / PAGE, _page(rows, lines, answers, drawings, without_places(settings)))
    for drawing in drawings:
        write_text(folder / "plots" / f"{drawing.name}.svg", drawing.chart.as_file())


def _page(
    rows: Sequence[Row], lines: Sequence[Line], answers: Sequence[Difference], drawings: Sequence[Plot], settings: Any
) -> str:
    environment = page_environment()
    environment.filters.update(mean=mean_text, difference=difference_text, verdict=verdict)
    finished = [row for row in rows if row["status"] == "ok"]
    return environment.get_template("study.html.j2").render(
        metric_names=METRICS,
        group_titles=_GROUP_TITLES,
        groups=list(dict.fromkeys(line.group for line in lines)),
        lines=lines,
        answers=answers,
        drawings=drawings,
        settings=settings,
        unfinished=unfinished(rows),
        data=list({row["dataset_hash"]: row for row in reversed(finished)}.values())[::-1],
        duration=duration(sum({row["train"]: row["seconds"] or 0.0 for row in finished if row["train"]}.values())),
        n_runs=len({row["train"] for row in finished if row["train"]}),
    )
