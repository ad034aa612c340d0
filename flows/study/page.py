"""Results of a study in its folder: every run as Parquet, tables, charts, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from data.files import write_table, write_text
from flows.report.page import page_environment
from flows.report.stage import without_places
from flows.study.plots import Plot, plots
from flows.study.rows import RUNS, RunRow, finished, runs_table, unfinished, without_cameras
from flows.study.table import COLUMNS, Difference, VariantScores, differences, variant_scores
from flows.study.text import difference_text, differences_csv, markdown, mean_text, means_csv, verdict_text
from flows.terminal import duration
from reid.evaluation.intervals import verdict
from reid.evaluation.protocol import NO_CAMERAS

PAGE: Final = "study.html"
MARKDOWN: Final = "study.md"
RUNS_FILE: Final = "runs.parquet"
_GROUP_TITLES: Final = {
    "main": "Methods and controls",
    "queries": "CLIP-SCGI over K",
    "depth": "CLIP-SCGI over depth",
    "why": "Further controls",
}


def write_results(folder: Path, rows: Sequence[RunRow], settings: Mapping[str, Any]) -> None:
    """Write runs.parquet, table.csv, differences.csv, study.md, study.html and plots/*.svg.

    settings: plain JSON of the recipe and the study's config, shown on the page.
    """
    variants, answers = variant_scores(rows), differences(rows)
    drawn = plots(rows, variants, answers)
    write_table(folder / RUNS_FILE, runs_table(rows), RUNS)
    write_text(folder / "table.csv", means_csv(variants, rows))
    write_text(folder / "differences.csv", differences_csv(answers, rows))
    write_text(folder / MARKDOWN, markdown(variants, answers, rows))
    write_text(folder / PAGE, _page(rows, variants, answers, drawn, without_places(settings)))
    for plot in drawn:
        write_text(folder / "plots" / f"{plot.name}.svg", plot.chart.as_file())


def _page(
    rows: Sequence[RunRow],
    variants: Sequence[VariantScores],
    answers: Sequence[Difference],
    drawn: Sequence[Plot],
    settings: Any,
) -> str:
    environment = page_environment()
    environment.filters.update(mean=mean_text, difference=difference_text, verdict=verdict, verdict_text=verdict_text)
    seconds = {row.train: row.seconds or 0.0 for row in finished(rows) if row.train}
    return environment.get_template("study.html.j2").render(
        columns=COLUMNS,
        camera_note=NO_CAMERAS if without_cameras(rows) else "",
        group_titles=_GROUP_TITLES,
        groups=list(dict.fromkeys(each.group for each in variants)),
        variants=variants,
        answers=answers,
        charts=[plot.chart for plot in drawn],
        settings=settings,
        unfinished=unfinished(rows),
        datasets=_datasets(rows),
        duration=duration(sum(seconds.values())),
        n_runs=len(seconds),
    )


def _datasets(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return the first row of every dataset that has a result."""
    found: dict[str | None, RunRow] = {}
    for row in finished(rows):
        found.setdefault(row.dataset_hash, row)
    return list(found.values())
