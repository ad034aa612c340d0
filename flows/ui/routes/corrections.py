"""Saving a correction of a caption, and telling the second of two people who correct the same one."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from captioning.corrections import ConflictError, Correction, Edit, EditError, ModelCaption
from captioning.corrections.edits import MAX_LENGTH
from data.slots import SLOTS
from flows.ui.content.items import ImageItem
from flows.ui.routes.images import browsed
from flows.ui.site import Site


class Wanted(BaseModel):
    """The body of a request to save. revision: the one that the page showed, 0 for none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["text", "slots", "wrong", "reset"]
    text: Annotated[str, Field(max_length=10 * MAX_LENGTH)] = ""
    slots: dict[str, str] = {}
    author: Annotated[str, Field(max_length=MAX_LENGTH)]
    revision: Annotated[int, Field(ge=0)]

    def edit(self) -> Edit:
        """Return the edit; an empty slot is one that the caption does not answer."""
        if self.kind == "text":
            return Edit.of_text(self.text)
        if self.kind == "slots":
            return Edit.of_slots({slot: value.strip() or None for slot, value in self.slots.items()})
        return Edit(kind=self.kind)


class Shown(BaseModel):
    """A caption as the page shows it. kind: "model" if nobody has corrected it."""

    kind: str
    text: str
    slots: dict[str, str]
    revision: int
    author: str
    time: str


class Clash(BaseModel):
    """Both sides of a conflict."""

    mine: Shown
    theirs: Shown


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the address."""

    @app.post("/datasets/{key}/images/{row}/caption")
    def save(request: Request, key: str, row: int, wanted: Wanted) -> Response:
        what = browsed(site, key, request.query_params)
        if not 0 <= row < len(what.table) or what.table.template is None:
            raise HTTPException(404)
        item = what.table.item(row)
        corrections = site.corrections.get(what.table.template)
        try:
            saved = corrections.save(
                item.sha256,
                wanted.edit(),
                author=wanted.author,
                expected_revision=wanted.revision,
                against=_model_caption(item),
            )
        except EditError as error:
            return JSONResponse({"problem": in_words(str(error))}, 422)
        except ConflictError as conflict:
            clash = Clash(mine=shown(item, conflict.mine), theirs=shown(item, conflict.theirs))
            return JSONResponse(clash.model_dump(), 409)
        return JSONResponse(shown(item, saved).model_dump())


def in_words(problem: str) -> str:
    """Return a problem of an edit with the labels of the page in place of the names of the slots."""
    problem = re.sub(r"^slots: (?=\w+: )", "", problem)
    names = "|".join(SLOTS)
    return re.sub(rf"\b({names}): ", lambda found: f"{found[1].replace('_', ' ').capitalize()}: ", problem)


def _model_caption(item: ImageItem) -> ModelCaption | None:
    return None if item.caption is None else ModelCaption(item.caption, item.captioner or "")


def shown(item: ImageItem, correction: Correction | None) -> Shown:
    """Return the caption of an image under a correction; the model's for None, wrong and reset. item: uncorrected."""
    if correction is None:
        return Shown(kind="model", text=item.caption or "", slots=_said(item), revision=0, author="", time="")
    leads = correction.text is not None
    slots = {slot: correction.slots.get(slot) or "" for slot in SLOTS} if leads else _said(item)
    return Shown(
        kind=correction.kind,
        text=correction.text if correction.text is not None else item.caption or "",
        slots=slots,
        revision=correction.revision,
        author=correction.author,
        time=f"{correction.time.astimezone():%Y-%m-%d %H:%M}",
    )


def _said(item: ImageItem) -> dict[str, str]:
    return {attribute.slot: attribute.value or "" for attribute in item.attributes}
