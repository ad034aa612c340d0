"""Search by a sentence, a picture, or attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from captioning.corrections.current import Current
from data.artifacts.fingerprint import digest
from data.artifacts.inventory import Entry
from data.errors import ClipScgiError
from data.slots import SLOTS, VOCABULARY
from flows.ui.content.library import Dataset, MissingError
from flows.ui.content.models import opened
from flows.ui.content.pictures import encoded
from flows.ui.content.searching import Wanted, searchable
from flows.ui.content.tables import ImageTable
from flows.ui.content.work import Job
from flows.ui.numbers import whole_number
from flows.ui.routes.images import filter_of
from flows.ui.routes.queries import told
from flows.ui.site import Site, captions_of

_HEIGHT: Final = 144


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an address of the search names. chosen: its query. image: a row of the dataset to search by."""

    model: Entry | None
    dataset: Dataset | None
    table: ImageTable | None
    corrections: Current
    text: str
    picture: str
    image: int | None
    attributes: Mapping[str, str]
    chosen: Mapping[str, str]

    @property
    def has_query(self) -> bool:
        """True if there is something to compare images with."""
        return bool(self.text or self.picture or self.image is not None)

    @property
    def job(self) -> str:
        """Key of the work that answers it."""
        captions = self.corrections.version() if self.attributes else ""
        parts = [self.model and self.model.fingerprint, self.dataset and self.dataset.key, captions]
        return f"search {digest([*parts, dict(self.chosen)])}"


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the addresses of the page, its progress, and the pictures to search by."""

    @app.get("/search")
    def search(request: Request) -> Response:
        asked = _asked(site, request.query_params)
        if asked.dataset is not None and asked.attributes and not asked.has_query:
            return RedirectResponse(f"/datasets/{asked.dataset.key}?{urlencode(asked.attributes)}", 303)
        return _search(site, request, asked)

    @app.get("/search/progress")
    def progress(request: Request) -> Response:
        job = site.workshop.find(_asked(site, request.query_params).job)
        if job is None:
            raise HTTPException(404)
        return JSONResponse(told(job, lambda _: {}))

    @app.post("/search/pictures")
    async def upload(request: Request) -> Response:
        content = await request.body()
        try:
            return JSONResponse({"picture": site.uploads.add(content)})
        except ClipScgiError as error:
            return JSONResponse({"problem": str(error)}, 422)

    @app.get("/search/pictures/{key}")
    def picture(key: str) -> Response:
        image = site.uploads.get(key)
        if image is None:
            raise HTTPException(404)
        return Response(encoded(image, _HEIGHT), media_type="image/jpeg", headers={"Cache-Control": "no-store"})


def _asked(site: Site, query: Mapping[str, str]) -> Asked:
    snapshot = site.library.snapshot()
    models = {entry.fingerprint: entry for entry in snapshot.entries("train")}
    name = query.get("model") or next(iter(models), "")
    if query.get("model") and name not in models:
        raise MissingError(f"The model {name[:40]!r} does not exist; it may have been removed.")
    key = query.get("dataset") or snapshot.trained_on(models.get(name))
    dataset = site.library.dataset(key) if key else None
    table = None if dataset is None else site.table(dataset, captions_of(dataset, ""))
    image, row = query.get("image", ""), whole_number(query.get("image", ""))
    if image and (row is None or table is None or row >= len(table)):
        raise MissingError(f"The image {image[:40]!r} does not exist in this dataset.")
    return Asked(
        model=models.get(name),
        dataset=dataset,
        table=table,
        corrections=Current.nothing() if table is None else site.corrections.current(table.template),
        text=query.get("text", "").strip(),
        picture=query.get("picture", ""),
        image=row,
        attributes=filter_of({slot: query.get(slot, "") for slot in SLOTS}).attributes,
        chosen={name: value for name, value in query.items() if value},
    )


def _search(site: Site, request: Request, asked: Asked) -> Response:
    snapshot = site.library.snapshot()
    job = _started(site, asked) if asked.has_query and asked.model and asked.dataset else None
    done = job is not None and job.done
    found = job.result if job is not None and job.done else []
    items = [] if asked.table is None else asked.table.items([one.row for one in found], asked.corrections)
    return site.page(
        request,
        "search.html.j2",
        asked=asked,
        models=snapshot.entries("train"),
        datasets=snapshot.datasets,
        names=site.names(snapshot.datasets),
        job=job,
        done=done,
        hits=list(zip(found, items, strict=True)),
        slots={slot: _values(asked, slot) for slot in SLOTS},
        chosen=asked.chosen,
        dataset=asked.dataset,
    )


def _values(asked: Asked, slot: str) -> list[tuple[str, str]]:
    values = asked.table.values.get(slot) if asked.table is not None else None
    return [(value, value) for value in values or VOCABULARY[slot]]


def _started(site: Site, asked: Asked) -> Job:
    """Return the work that answers `asked`; start it unless it was done before."""
    wanted = _wanted(site, asked)
    return site.workshop.ask(asked.job, lambda tell: site.searcher.search(wanted, tell))


def _wanted(site: Site, asked: Asked) -> Wanted:
    if asked.model is None or asked.dataset is None or asked.table is None:
        raise MissingError("A search needs a trained model and a dataset.")
    rows = searchable(asked.table)
    if asked.attributes:
        rows = np.intersect1d(rows, asked.table.select(filter_of(asked.attributes), asked.corrections))
    common: dict[str, Any] = {"model": asked.model, "index": asked.dataset.entry, "table": asked.table}
    if asked.text:
        return Wanted(**common, candidates=rows, text=asked.text, picture=None)
    if asked.image is not None:
        item = asked.table.item(asked.image)
        others = rows[rows != asked.image]
        return Wanted(**common, candidates=others, text="", picture=opened(asked.table, item), camera=item.camera)
    picture = site.uploads.get(asked.picture)
    if picture is None:
        raise MissingError("This picture is no longer in memory; choose the file again.")
    return Wanted(**common, candidates=rows, text="", picture=picture)
