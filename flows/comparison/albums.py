"""Queries with their first gallery images in two runs, as pages and pictures show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.artifacts.store import ArtifactStore
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName, Names
from flows.comparison.compare import QueryPair
from flows.comparison.images import find_test_images
from flows.comparison.runs import RankedRow, Run
from flows.comparison.text import letter
from flows.report.gather import rows_where
from flows.report.retrieval import Hit, nearest_images

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
class Album:
    """The thumbnails of a run and the names of its identities. problem: why there are no thumbnails, or ""."""

    thumbnail: Callable[[str], Thumbnail]
    names: Names
    problem: str


def album_of(run: Run, store: ArtifactStore, folder: Path | None) -> Album:
    """Return the album of a run. folder: of the images; None: where they were when they were indexed."""
    images = find_test_images(run, store)
    if images is None:
        problem = f"the images of {run.key} are not shown: their index artifact is not in the artifact root"
        return Album(thumbnail=_missing, names=IdentityName, problem=problem)
    root = folder or images.root(store)
    if root is None:
        problem = f"the images of {run.key} are not shown: their folder is unknown; name it with --images FOLDER"
        return Album(thumbnail=_missing, names=images.names, problem=problem)
    return Album(thumbnail=Thumbnails(root, images.digests, _HEIGHT), names=images.names, problem="")


def _missing(path: str) -> Thumbnail:
    return Thumbnail(source=None, problem="not found", width=_HEIGHT // 2, height=_HEIGHT)


def shown_queries(
    baseline: RankedRow,
    run: RankedRow,
    pairs: Sequence[QueryPair],
    name: str,
    albums: Mapping[Path, Album],
    *,
    first_match: bool = True,
) -> list[ShownQuery]:
    """Return queries with their first `RANKS` gallery images in both runs.

    name: of the run. albums: by folder of the evaluation. first_match: see `nearest_images`.
    """
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
            sides=(
                _side(before[pair.baseline_path], letter(0), ours, first_match=first_match),
                _side(after[pair.path], name, theirs, first_match=first_match),
            ),
        )
        for pair in pairs
    ]


def _rankings(ranked: RankedRow, paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return query path -> its row of rankings.parquet."""
    if not paths:
        return {}
    row = ranked.row
    rows = rows_where(ranked.run.rankings, "query_path", paths)
    return {found["query_path"]: found for found in rows if (found["model"], found["mode"]) == tuple(row)}


def _side(row: Mapping[str, Any], name: str, album: Album, *, first_match: bool) -> Side:
    hits = nearest_images(dict(row), album.thumbnail, RANKS, album.names, first_match=first_match)
    return Side(name=name, ap=row["ap"], first_hit=row["first_hit"], hits=hits)
