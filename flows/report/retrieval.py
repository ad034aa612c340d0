"""The retrieval part of the report: queries with their nearest gallery images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.columns.texts import Texts
from data.errors import DataError, counted
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName, Names
from flows.report.gather import Row, take_rows, thirds
from reid.relevance.grid import Pair
from reid.relevance.overlay import overlay
from reid.relevance.stage import Relevance

if TYPE_CHECKING:
    from reid.relevance.faithfulness import Faithfulness

_SELECTORS: Final = ("model", "mode", "query_path", "query_pid", "ap", "first_hit")
_GROUPS: Final = ("Lowest average precision", "Around the median", "Highest average precision")
_FALLEN: Final = "Lost most against the untrained model"
_SAMPLE: Final = 64
"""Queries on which the faithfulness of maps is measured."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Explain = Callable[[Sequence[Pair], Sequence[Pair]], Relevance]
"""(pairs to map, pairs on which faithfulness is measured) -> their relevance."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One gallery image in the row of a query. far: its rank is beyond those of the images before it."""

    rank: int
    far: bool
    path: str
    identity: IdentityName
    camid: int
    score: float
    right: bool
    image: Thumbnail


class PairMaps(NamedTuple):
    """What makes a query and its first gallery image similar, drawn over both."""

    query: Thumbnail
    first: Thumbnail


@dataclass(frozen=True, kw_only=True)
class QueryRow:
    """A query with its nearest gallery images. ap_before: AP of the untrained model; None where there is none.

    first_hit: rank of the first match. n_relevant: matches in the gallery. n_right: matches shown. maps: None where
    relevance is not shown.
    """

    path: str
    identity: IdentityName
    camid: int
    image: Thumbnail
    ap: float
    ap_before: float | None
    first_hit: int
    n_relevant: int
    n_right: int
    hits: Sequence[Hit]
    maps: PairMaps | None


class QueryGroup(NamedTuple):
    """Queries that were chosen for one reason. meaning: how many they are, their AP, and how many of them fail."""

    title: str
    meaning: str
    queries: Sequence[QueryRow]


class Failures(NamedTuple):
    """Counts over all queries. missed: the first image is wrong. fallen: lower AP than untrained; None if unknown."""

    total: int
    missed: int
    fallen: int | None


class QuerySection(TypedDict):
    """Queries on the page, in groups, and how many of all queries fail.

    relevance_problem: why relevance could not be computed; None if it was, or was not asked for.
    """

    groups: Sequence[QueryGroup]
    failures: Failures
    faithfulness: Faithfulness | None
    relevance_problem: str | None


def leading_row(results: Sequence[Row], mode: str) -> Row:
    """Return the row of metrics.json that leads the page: the trained model, in `mode` where that was evaluated."""
    trained = [row for row in results if row["model"] == "trained"] or list(results)
    return next((row for row in trained if row["mode"] == mode), trained[0])


def query_section(
    path: Path,
    thumbnail: Thumbnails,
    *,
    model: str,
    mode: str,
    each: int,
    top_k: int,
    seed: int,
    explain: Explain | None = None,
    names: Names = IdentityName,
) -> QuerySection:
    """Choose queries from rankings.parquet.

    There are three groups by average precision (AP) and, where there is an untrained model, the queries that lost most
    AP against it. explain: None to show no relevance. names: of the identities.
    """
    table = pq.read_table(path, columns=list(_SELECTORS))
    own = _Queries.of(table, model, mode)
    untrained = _Queries.of(table, "untrained", mode) if model != "untrained" else None
    before = None if untrained is None or not len(untrained.ap) else own.ap_in(untrained)
    fallen = np.empty(0, dtype=np.int64) if before is None else _fallen(own, before)
    parts = {title: part for title, part in _parts(own, fallen, each, seed).items() if part}
    chosen = {title: take_rows(path, own.place[part].tolist()) for title, part in parts.items()}
    relevance, problem = None, None
    if explain is not None and chosen:
        drawn = np.random.default_rng(seed).permutation(len(own.ap))[:_SAMPLE]
        sample = take_rows(path, own.place[np.sort(drawn)].tolist())
        pairs = [_pair(row) for rows in chosen.values() for row in rows]
        try:
            relevance = explain(pairs, [_pair(row) for row in sample])
        except DataError as error:  # an image is gone: the rest of the page is still worth having
            problem = str(error)
    groups = [
        QueryGroup(
            title,
            _meaning(full),
            [
                _query(
                    row,
                    thumbnail,
                    top_k,
                    names=names,
                    ap_before=None if before is None or np.isnan(before[at]) else float(before[at]),
                    maps=_maps(row, thumbnail, relevance),
                )
                for row, at in zip(full, parts[title], strict=True)
            ],
        )
        for title, full in chosen.items()
    ]
    missed = int((own.first_hit > 1).sum())
    return QuerySection(
        groups=groups,
        failures=Failures(len(own.ap), missed, None if before is None else len(fallen)),
        faithfulness=relevance.faithfulness if relevance else None,
        relevance_problem=problem,
    )


def _pair(row: Row) -> Pair:
    """Return the query and its first gallery image."""
    return row["query_path"], row["top_paths"][0]


def _maps(row: Row, thumbnail: Thumbnails, relevance: Relevance | None) -> PairMaps | None:
    if relevance is None:
        return None
    pair, grid = relevance.pairs[_pair(row)], relevance.grid
    query, first = _pair(row)
    return PairMaps(
        query=thumbnail.drawn(query, partial(overlay, map_RC=pair.query_RC, grid=grid)),
        first=thumbnail.drawn(first, partial(overlay, map_RC=pair.gallery_RC, grid=grid)),
    )


class _Queries(NamedTuple):
    """Queries of one model and mode, [Q]. place: row in rankings.parquet."""

    place: Ints
    path: Texts
    pid: Ints
    ap: Floats
    first_hit: Ints

    @classmethod
    def of(cls, table: pa.Table, model: str, mode: str) -> _Queries:
        """Return the queries of a model and mode. table: the columns `_SELECTORS`."""
        is_own = pc.and_(pc.equal(table["model"], model), pc.equal(table["mode"], mode))
        own = table.filter(is_own)
        pid, ap, first_hit = (own[name].to_numpy() for name in ("query_pid", "ap", "first_hit"))
        return cls(np.flatnonzero(is_own.to_numpy()), Texts(own["query_path"]), pid, ap, first_hit)

    def ap_in(self, other: _Queries) -> Floats:
        """Return the AP of each of these queries in another row, NaN for those that it does not have."""
        place = self.path.places_in(other.path)
        return np.where(place < 0, np.nan, other.ap[place])


def _parts(queries: _Queries, fallen: Ints, each: int, seed: int) -> dict[str, list[int]]:
    """Return title -> numbers of the queries of each group, none of them twice."""
    parts = dict(zip(_GROUPS, thirds(queries.ap, queries.pid, each, seed=seed), strict=True))
    taken = [at for part in parts.values() for at in part]
    return {**parts, _FALLEN: fallen[~np.isin(fallen, taken)][:each].tolist()}


def _fallen(queries: _Queries, before: Floats) -> Ints:
    """Return the numbers of the queries with a lower AP than `before`, the greatest loss first."""
    lost = before - queries.ap
    fallen = np.flatnonzero(lost > 0)
    keys = pa.table({"gain": -lost[fallen], "path": queries.path[fallen]})
    order = pc.sort_indices(keys, sort_keys=[("gain", "ascending"), ("path", "ascending")])
    return fallen[order.to_numpy()]


def _meaning(rows: Sequence[Row]) -> str:
    """Return how many queries a group shows, their AP, and how many of them have a wrong first image."""
    aps = sorted(100 * row["ap"] for row in rows)
    missed = sum(row["first_hit"] > 1 for row in rows)
    return f"{counted(len(rows), 'query')}, AP {aps[0]:.1f} to {aps[-1]:.1f} %, {missed} with a wrong first image"


def _query(
    row: Row, thumbnail: Thumbnails, top_k: int, *, names: Names, ap_before: float | None, maps: PairMaps | None
) -> QueryRow:
    hits = nearest_images(row, thumbnail, top_k, names)
    return QueryRow(
        path=row["query_path"],
        identity=names(row["query_pid"]),
        camid=row["query_camid"],
        image=thumbnail(row["query_path"]),
        ap=row["ap"],
        ap_before=ap_before,
        first_hit=row["first_hit"],
        n_relevant=row["n_relevant"],
        n_right=sum(hit.right for hit in hits),
        hits=hits,
        maps=maps,
    )


def nearest_images(
    row: Row, thumbnail: Callable[[str], Thumbnail], top_k: int, names: Names, *, first_match: bool = True
) -> list[Hit]:
    """Return the `top_k` nearest images of a row of rankings.parquet.

    first_match: if none of them is right, the first match takes the last place.
    """
    columns = zip(*(row[f"top_{name}"] for name in ("paths", "pids", "camids", "scores")), strict=True)
    ranked = list(enumerate(columns, start=1))
    first = row["first_hit"]
    if first_match and top_k < first <= len(ranked):
        ranked = [*ranked[: top_k - 1], ranked[first - 1]]
    return [
        Hit(
            rank=rank,
            far=rank > top_k,
            path=path,
            identity=names(pid),
            camid=camid,
            score=score,
            right=pid == row["query_pid"],
            image=thumbnail(path),
        )
        for rank, (path, pid, camid, score) in ranked[:top_k]
    ]
