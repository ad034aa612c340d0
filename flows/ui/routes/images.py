"""The images of a dataset: a filtered page of them, one of them, and their pictures."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import Response

from captioning.audit.flags import FLAGS
from captioning.corrections.current import Current
from data.artifacts.inventory import Entry
from data.errors import ConfigError, RejectedRow
from data.slots import SLOTS, VOCABULARY
from flows.ui.content.items import STATES, UNSAID, ImageFilter
from flows.ui.content.library import Dataset
from flows.ui.content.pictures import HEIGHTS, placeholder
from flows.ui.content.tables import ImageTable
from flows.ui.numbers import whole_number
from flows.ui.site import Site, captions_of

PAGE: Final = 60
"""Images per page."""


@dataclass(frozen=True, kw_only=True)
class Browsed:
    """What an address of this module names. chosen: the query of the address, without the page."""

    dataset: Dataset
    captions: Entry | None
    table: ImageTable
    wanted: ImageFilter
    corrections: Current
    chosen: Mapping[str, str]


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the addresses of the pages and pictures."""

    @app.get("/datasets/{key}")
    def browse(request: Request, key: str, page: int = 1) -> Response:
        return _browse(site, request, browsed(site, key, request.query_params), page)

    @app.get("/datasets/{key}/images/{row}")
    def one(request: Request, key: str, row: int) -> Response:
        return _one(site, request, browsed(site, key, request.query_params), row)

    @app.get("/datasets/{key}/pictures/{row}/{height}")
    def picture(key: str, row: int, height: int) -> Response:
        dataset = site.library.dataset(key)
        return picture_of(site, site.tables.get(dataset.entry, None, None), row, height)


def browsed(site: Site, key: str, query: Mapping[str, str]) -> Browsed:
    """Return what the address and its query name. Raises ConfigError for a wrong value of a filter."""
    dataset = site.library.dataset(key)
    captions = captions_of(dataset, query.get("captions", ""))
    table = site.table(dataset, captions)
    return Browsed(
        dataset=dataset,
        captions=captions,
        table=table,
        corrections=site.corrections.current(table.template),
        wanted=filter_of(query),
        chosen={name: value for name, value in query.items() if value and name != "page"},
    )


def filter_of(query: Mapping[str, str]) -> ImageFilter:
    """Return the filter in the query of an address. Raises ConfigError for a wrong value."""
    camera, flag = query.get("camera", ""), query.get("flag", "")
    if camera and whole_number(camera) is None:
        raise ConfigError(f"The camera {camera[:40]!r} is not a number; choose one from the list.")
    if flag and flag not in FLAGS:
        raise ConfigError(f"The flag {flag[:40]!r} does not exist; choose one from the list.")
    if query.get("state") and query["state"] not in STATES:
        raise ConfigError(f"The state {query['state'][:40]!r} does not exist; choose one from the list.")
    return ImageFilter(
        state=query.get("state", ""),
        text=query.get("text", "").strip(),
        split=query.get("split", ""),
        camera=whole_number(camera),
        person=query.get("person", "").strip(),
        flag=flag,
        attributes={slot: query[slot] for slot in SLOTS if query.get(slot)},
    )


def picture_of(site: Site, table: ImageTable, row: int, height: int) -> Response:
    """Return the picture of one image, or a picture that says why there is none."""
    if not 0 <= row < len(table) or height not in HEIGHTS:
        raise HTTPException(404)
    item = table.item(row)
    if table.root is None:
        return Response(placeholder(None), 404, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
    try:
        content = site.pictures.jpeg(table.root, item.path, item.sha256, height)
    except RejectedRow as rejected:
        return Response(placeholder(rejected), 404, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
    # The address names the index, which names the bytes, so the picture never changes.
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400, immutable"})


def _browse(site: Site, request: Request, what: Browsed, page: int) -> Response:
    table = what.table
    rows = table.select(what.wanted, what.corrections)
    pages = max(1, -(-len(rows) // PAGE))
    page = min(max(page, 1), pages)
    shown = rows[(page - 1) * PAGE : page * PAGE]
    return site.page(
        request,
        "images.html.j2",
        **_common(what),
        items=table.items(shown, what.corrections),
        found=len(rows),
        page=page,
        pages=pages,
        flag_options=[(flag, f"{flag.replace('_', ' ')} ({count:,})") for flag, count in table.flag_counts.items()],
        slot_options={slot: _options(values) for slot, values in table.values.items()},
    )


def _options(values: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a slot: its values, and captions that do not answer it."""
    return [*((value, value) for value in values), (UNSAID, "not said")]


def _one(site: Site, request: Request, what: Browsed, row: int) -> Response:
    if not 0 <= row < len(what.table):
        raise HTTPException(404)
    rows = what.table.select(what.wanted, what.corrections)
    at = int(rows.searchsorted(row))
    inside = at < len(rows) and rows[at] == row
    return site.page(
        request,
        "image.html.j2",
        **_common(what),
        item=what.table.item(row, what.corrections),
        place=at + 1 if inside else None,
        found=len(rows),
        before=int(rows[at - 1]) if at > 0 else None,
        after=int(rows[at + inside]) if at + inside < len(rows) else None,
        back=at // PAGE + 1,
        author=getpass.getuser(),
        correctable=_is_correctable(site, what.table),
        suggestions={slot: sorted({*VOCABULARY[slot], *what.table.values.get(slot, ())}) for slot in SLOTS},
    )


def _is_correctable(site: Site, table: ImageTable) -> bool:
    """Return False without captions, and if this installation does not have their template."""
    try:
        return table.template is not None and bool(site.corrections.get(table.template))
    except ConfigError:
        return False


def _common(what: Browsed) -> dict[str, Any]:
    return {
        "dataset": what.dataset,
        "captions": what.captions,
        "table": what.table,
        "wanted": what.wanted,
        "chosen": what.chosen,
        "slots": SLOTS,
        "states": STATES,
    }
