"""Results of a study in its folder: every run as Parquet, tables, charts, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from data.artifacts.inventory import try_lock
from data.artifacts.store import ArtifactStore
from data.files import write_table, write_text
from flows.report.page import page_environment
from flows.report.stage import without_places
from flows.study.results.plots import Plot, plots
from flows.study.results.text import (
    difference_text,
    differences_csv,
    interval_text,
    markdown,
    mean_text,
    means_csv,
    p_text,
    shown_columns,
    verdict_text,
    visible_text,
)
from flows.study.results.world import BOOTSTRAP, GROUP_TITLES, VERDICT, VISIBLE, WorldResult, world_results
from flows.study.rows import RUNS, RunRow, finished, runs_table
from flows.study.statistics.queries import QueryReader
from flows.study.statistics.scores import COLUMNS
from flows.terminal import duration
from reid.evaluation.intervals import verdict

PAGE: Final = "study.html"
MARKDOWN: Final = "study.md"
RUNS_FILE: Final = "runs.parquet"
_LOCK: Final = "study_results"


class ResultWriter:
    """Writes the results of a study into its folder, as often as there are new ones.

    store: its evaluations have the scores of single queries; None: no bootstrap. settings: plain JSON of the recipes
    and the study's config, shown on the page.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], store: ArtifactStore | None = None) -> None:
        self._folder, self._settings, self._store = folder, settings, store
        self._queries = None if store is None else QueryReader(store)

    def write(self, rows: Sequence[RunRow]) -> None:
        """Write runs.parquet, table.csv, differences.csv, study.md, study.html and plots/WORLD/*.svg.

        Do nothing while another process writes results of this store.
        """
        if self._store is None:
            self._write(rows)
            return
        with try_lock(self._store, _LOCK, "all") as is_mine:
            if is_mine:
                self._write(rows)

    def finish(self, rows: Sequence[RunRow]) -> None:
        """Write the same files unless they have these rows already, written here or by another process."""
        if self._store is None:
            self._write(rows)
            return
        with self._store.lock(_LOCK, "all"):
            file = self._folder / RUNS_FILE
            if not file.is_file() or not pq.read_table(file).equals(runs_table(rows)):
                self._write(rows)

    def _write(self, rows: Sequence[RunRow]) -> None:
        folder, results = self._folder, world_results(rows, self._queries)
        drawn = {result.name: plots(result) for result in results}
        write_text(folder / "table.csv", means_csv(results))
        write_text(folder / "differences.csv", differences_csv(results))
        write_text(folder / MARKDOWN, markdown(results))
        write_text(folder / PAGE, _page(rows, results, drawn, without_places(self._settings)))
        for world, charts in drawn.items():
            for plot in charts:
                write_text(folder / "plots" / world / f"{plot.name}.svg", plot.chart.as_file())
        write_table(folder / RUNS_FILE, runs_table(rows), RUNS)  # last: `finish` takes it as a sign of the others


def _page(
    rows: Sequence[RunRow], results: Sequence[WorldResult], drawn: Mapping[str, Sequence[Plot]], settings: Any
) -> str:
    environment = page_environment()
    environment.filters.update(
        mean=mean_text,
        difference=difference_text,
        interval=interval_text,
        visible=visible_text,
        p=p_text,
        verdict=verdict,
        verdict_text=verdict_text,
        columns=shown_columns,
    )
    seconds = {row.train: row.seconds or 0.0 for row in finished(rows) if row.train}
    return environment.get_template("study.html.j2").render(
        results=results,
        labels=dict(COLUMNS),
        notes=[VERDICT, BOOTSTRAP, VISIBLE],
        group_titles=GROUP_TITLES,
        charts={world: {plot.name: plot.chart for plot in charts} for world, charts in drawn.items()},
        settings=settings,
        has_results=bool(finished(rows)),
        duration=duration(sum(seconds.values())),
        n_runs=len(seconds),
    )
