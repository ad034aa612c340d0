"""The queries of a run, worst first, with their rank lists and what makes a query and a hit similar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data.artifacts.inventory import Entry
from data.errors import ConfigError
from data.files import read_json
from flows.report.scores import signed
from flows.report.sentences import TEXT_METRICS, UNKNOWN_REASON, TextScores, text_scores
from flows.ui.content.library import MissingError, Run
from flows.ui.content.models import Maps
from flows.ui.content.rankings import Query, Rankings
from flows.ui.content.tables import ImageTable
from flows.ui.content.work import Job
from flows.ui.site import Site

PAGE: Final = 20
"""Queries per page."""
_LISTED: Final = 10


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A run with its rankings. table: of its dataset, None if that was removed. model, mode: the chosen row."""

    run: Run
    rankings: Rankings
    table: ImageTable | None
    model: str
    mode: str

    def row_of(self, path: str) -> int | None:
        """Return the row of an image in the index of the dataset."""
        return None if self.table is None else self.table.row_of(path)

    def person(self, path: str, pid: int) -> str:
        """Return the identity of an image as the dataset names it."""
        row = self.row_of(path)
        return str(pid) if row is None or self.table is None else self.table.person(row)


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the addresses of the pages and of the maps."""

    @app.get("/runs/{key}")
    def worst(request: Request, key: str, page: int = 1) -> Response:
        return _worst(site, request, searched(site, key, request.query_params), page)

    @app.get("/runs/{key}/queries/{number}")
    def one(request: Request, key: str, number: int) -> Response:
        what = searched(site, key, request.query_params)
        query = _query(what, number)
        return site.page(
            request, "query.html.j2", what=what, query=query, explainable=_model_of(what, query) is not None
        )

    @app.get("/runs/{key}/queries/{number}/maps/{rank}")
    def explain(request: Request, key: str, number: int, rank: int, again: bool = False) -> Response:
        known = None if again else site.workshop.find(_key(key, number, rank))
        job = known or _explained(site, searched(site, key, request.query_params), number, rank)
        return JSONResponse(told(job, lambda maps: {"similarity": round(maps.similarity, 4)}))

    @app.get("/runs/{key}/queries/{number}/maps/{rank}/{side}")
    def map_picture(key: str, number: int, rank: int, side: str) -> Response:
        job = site.workshop.find(_key(key, number, rank))
        if job is None or not job.done or side not in Maps._fields[:2]:
            raise HTTPException(404)
        return Response(getattr(job.result, side), media_type="image/jpeg", headers={"Cache-Control": "no-store"})


def told(job: Job, of_result: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Return the state of a job for a script. of_result: result -> more values."""
    state = "failed" if job.problem else "done" if job.done else "working"
    return {"state": state, "note": job.problem or job.note, **(of_result(job.result) if job.done else {})}


def searched(site: Site, key: str, query: Mapping[str, str]) -> Searched:
    """Return a run and the row of it that `query` names; by default the trained model in image mode.

    Raises MissingError for an unknown run and ConfigError for an unknown row.
    """
    run = site.library.run(key)
    names = [(score.model, score.mode) for score in run.scores]
    if not names:
        raise MissingError("This run does not have any scores.")
    first = ("trained", "image") if ("trained", "image") in names else names[-1]
    model, mode = query.get("model") or first[0], query.get("mode") or first[1]
    if (model, mode) not in names:
        known = "; ".join(f"{name}, {other}" for name, other in names)
        raise ConfigError(f"This run has no row {model[:40]}, {mode[:40]}; it has: {known}.")
    table = None if run.dataset is None else site.tables.get(run.dataset.entry, None, None)
    return Searched(run=run, rankings=site.rankings.get(run), table=table, model=model, mode=mode)


def _worst(site: Site, request: Request, what: Searched, page: int) -> Response:
    numbers = what.rankings.worst_first(what.model, what.mode)
    pages = max(1, -(-len(numbers) // PAGE))
    page = min(max(page, 1), pages)
    shown = numbers[(page - 1) * PAGE : page * PAGE]
    return site.page(
        request,
        "queries.html.j2",
        what=what,
        text=_text(what.run),
        text_metrics=TEXT_METRICS,
        text_missing=UNKNOWN_REASON,
        signed=signed,
        queries=[what.rankings.query(int(number), _LISTED) for number in shown],
        found=len(numbers),
        page=page,
        pages=pages,
        chosen={"model": what.model, "mode": what.mode},
    )


def _text(run: Run) -> TextScores | None:
    """Return text to image of a run with its intervals, None if it was not measured."""
    folder = run.entry.folder
    return text_scores(read_json(folder / "metrics.json"), folder) if run.text else None


def _query(what: Searched, number: int) -> Query:
    if not 0 <= number < len(what.rankings):
        raise HTTPException(404)
    return what.rankings.query(number)


def _model_of(what: Searched, query: Query) -> Entry | None:
    """Return the model that ranked the query, None if it is untrained or was removed."""
    return what.run.model if query.model == "trained" and what.table is not None else None


def _key(run: str, number: int, rank: int) -> str:
    return f"maps {run} {number} {rank}"


def _explained(site: Site, what: Searched, number: int, rank: int) -> Job:
    query = _query(what, number)
    model, table = _model_of(what, query), what.table
    if model is None or table is None or not 1 <= rank <= len(query.hits):
        raise HTTPException(404)
    rows = [what.row_of(path) for path in (query.path, query.hits[rank - 1].path)]
    if None in rows:
        raise HTTPException(404)
    pair = table.items([row for row in rows if row is not None])
    return site.workshop.ask(
        _key(what.run.key, number, rank),
        lambda tell: site.models.maps(model, query.mode, table, pair, tell),
    )
