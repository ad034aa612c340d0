"""The page of a comparison: one self-contained HTML file with the queries that were won and lost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.artifacts.store import ArtifactStore
from data.files import write_text
from flows.comparison.albums import RANKS, Album, ShownQuery, album_of, shown_queries
from flows.comparison.compare import Comparison, Difference
from flows.comparison.runs import RankedRow
from flows.comparison.text import described, letter, notices_of, several, text_title
from flows.report.page import page_environment
from flows.report.scores import interval_text


@dataclass(frozen=True, kw_only=True)
class QueryList:
    """The queries of one list. total: how many were won, or lost, in all."""

    title: str
    total: int
    queries: Sequence[ShownQuery]


@dataclass(frozen=True, kw_only=True)
class ShownDifference:
    """One run against the baseline, as the page shows it. lists: the most won queries, then the most lost."""

    name: str
    difference: Difference
    notices: Sequence[str]
    lists: Sequence[QueryList]


def write_page(
    path: Path, comparison: Comparison, store: ArtifactStore, *, top: int, images: Path | None = None
) -> None:
    """Write the page to `path`.

    top: queries in each list. images: the folder of the images; by default, where they were when they were indexed.
    """
    albums = {run.folder: album_of(run, store, images) for run in (ranked.run for ranked in comparison.rows)}
    shown = [
        _shown(comparison.baseline, difference, letter(number), top, albums)
        for number, difference in enumerate(comparison.differences, start=1)
    ]
    problems = dict.fromkeys(album.problem for album in albums.values() if album.problem)
    write_text(path, _render(comparison, shown, list(problems)))


def _render(comparison: Comparison, shown: Sequence[ShownDifference], problems: Sequence[str]) -> str:
    environment = page_environment()
    environment.filters.update(interval=interval_text)
    return environment.get_template("comparison/page.html.j2").render(
        baseline=letter(0),
        runs=[(letter(number), described(ranked), ranked) for number, ranked in enumerate(comparison.rows)],
        shown=shown,
        method=comparison.method,
        several=several(comparison),
        text_title=text_title,
        problems=problems,
        ranks=RANKS,
    )


def _shown(
    baseline: RankedRow, difference: Difference, name: str, top: int, albums: Mapping[Path, Album]
) -> ShownDifference:
    tally = difference.metrics[0].tally
    lists = (
        (f"Won most by {name}", tally.won, difference.most_won(top)),
        (f"Lost most by {name}", tally.lost, difference.most_lost(top)),
    )
    return ShownDifference(
        name=name,
        difference=difference,
        notices=notices_of(difference, name),
        lists=[
            QueryList(title=title, total=total, queries=shown_queries(baseline, difference.ranked, pairs, name, albums))
            for title, total, pairs in lists
        ],
    )
