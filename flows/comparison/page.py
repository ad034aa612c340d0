"""The page of a comparison: one self-contained HTML file with the queries that were won and lost most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from data.artifacts.store import ArtifactStore
from data.files import write_text
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName, Names
from flows.comparison.compare import Comparison, Difference, QueryPair
from flows.comparison.images import find_test_images
from flows.comparison.runs import RankedRow, Run
from flows.comparison.text import described, letter, notices_of, several
from flows.report.page import page_environment
from flows.report.retrieval import Hit, nearest_images
from flows.report.scores import interval_text

RANKS: Final = 10
"""Gallery images shown per query and run."""
_HEIGHT: Final = 144  # pixels of a thumbnail


@dataclass(frozen=True, kw_only=True)
class Side:
    """One run's ranking of a query. ap: fraction. first_hit: rank of the first match."""

    name: str
    ap: float
    first_hit: int
    hits: Sequence[Hit]


@dataclass(frozen=True, kw_only=True)
class ShownQuery:
    """A query with its first gallery images in the baseline and in the run. gain: points of average precision."""

    path: str
    identity: IdentityName
    camid: int
    image: Thumbnail
    gain: float
    sides: tuple[Side, Side]


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


@dataclass(frozen=True, kw_only=True)
class _Album:
    """The thumbnails of a run and the names of its identities. problem: why there are no thumbnails, or ""."""

    thumbnail: Callable[[str], Thumbnail]
    names: Names
    problem: str


def write_page(
    path: Path, comparison: Comparison, store: ArtifactStore, *, top: int, images: Path | None = None
) -> None:
    """Write the page to `path`.

    top: queries in each list. images: the folder of the images; by default, where they were when they were indexed.
    """
    albums = {run.folder: _album(run, store, images) for run in (ranked.run for ranked in comparison.rows)}
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
        problems=problems,
        ranks=RANKS,
    )


def _album(run: Run, store: ArtifactStore, folder: Path | None) -> _Album:
    images = find_test_images(run, store)
    if images is None:
        problem = f"the images of {run.key} are not shown: their index artifact is not in the artifact root"
        return _Album(thumbnail=_missing, names=IdentityName, problem=problem)
    root = folder or images.root(store)
    if root is None:
        problem = f"the images of {run.key} are not shown: their folder is unknown; name it with --images FOLDER"
        return _Album(thumbnail=_missing, names=images.names, problem=problem)
    return _Album(thumbnail=Thumbnails(root, images.digests, _HEIGHT), names=images.names, problem="")


def _missing(path: str) -> Thumbnail:
    return Thumbnail(source=None, problem="not found", width=_HEIGHT // 2, height=_HEIGHT)


def _shown(
    baseline: RankedRow, difference: Difference, name: str, top: int, albums: Mapping[Path, _Album]
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
            QueryList(title=title, total=total, queries=_queries(baseline, difference.ranked, pairs, name, albums))
            for title, total, pairs in lists
        ],
    )


def _queries(
    baseline: RankedRow, run: RankedRow, pairs: Sequence[QueryPair], name: str, albums: Mapping[Path, _Album]
) -> list[ShownQuery]:
    before = _rankings(baseline, [pair.baseline_path for pair in pairs])
    after = _rankings(run, [pair.path for pair in pairs])
    ours, theirs = albums[baseline.run.folder], albums[run.run.folder]
    return [
        ShownQuery(
            path=pair.path,
            identity=pair.identity,
            camid=before[pair.baseline_path]["query_camid"],
            image=theirs.thumbnail(pair.path),
            gain=100 * pair.gain,
            sides=(_side(before[pair.baseline_path], letter(0), ours), _side(after[pair.path], name, theirs)),
        )
        for pair in pairs
    ]


def _rankings(ranked: RankedRow, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return query path -> its row of rankings.parquet."""
    if not paths:
        return {}
    row = ranked.row
    filters = [("model", "==", row.model), ("mode", "==", row.mode), ("query_path", "in", list(paths))]
    return {found["query_path"]: found for found in pq.read_table(ranked.run.rankings, filters=filters).to_pylist()}


def _side(row: Mapping[str, Any], name: str, album: _Album) -> Side:
    hits = nearest_images(dict(row), album.thumbnail, RANKS, album.names)
    return Side(name=name, ap=row["ap"], first_hit=row["first_hit"], hits=hits)
