"""What all pages share: the library, the tables, the pictures, and the templates."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from captioning.audit.flags import FLAGS
from data.artifacts.inventory import Entry
from data.artifacts.store import ArtifactStore
from flows.terminal import size
from flows.ui.content.library import Dataset, Library, MissingError
from flows.ui.content.pictures import Pictures
from flows.ui.content.tables import ImageTable, Tables

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"


class Site:
    """The state of one server. folders: where to look for images (`flows.ui.content.places`)."""

    def __init__(self, store: ArtifactStore, folders: Sequence[Path] = ()) -> None:
        self.store = store
        self.library = Library(store)
        self.tables = Tables(store, folders)
        self.pictures = Pictures()
        self.token = secrets.token_urlsafe(24)
        self._templates = _environment()

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page, which browsers do not keep: the store may change."""
        html = self._templates.get_template(template).render(
            request=request, token=self.token, home=str(self.store.root), **values
        )
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})

    def table(self, dataset: Dataset, captions: Entry | None) -> ImageTable:
        """Return the images of a dataset with these captions and their audit."""
        audit = None if captions is None else self.library.snapshot().audit_of(captions)
        return self.tables.get(dataset.entry, captions, audit)


def captions_of(dataset: Dataset, fingerprint: str) -> Entry | None:
    """Return the caption artifact with this fingerprint, the newest for "", None if the dataset has none.

    Raises MissingError for an unknown fingerprint.
    """
    if not fingerprint:
        return next(iter(dataset.captions), None)
    found = next((entry for entry in dataset.captions if entry.fingerprint == fingerprint), None)
    if found is None:
        raise MissingError(f"captions {fingerprint[:40]!r} of this dataset do not exist; they may have been removed")
    return found


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["words"] = lambda name: name.replace("_", " ")
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["whole_percent"] = lambda share: f"{100 * share:.0f}"
    environment.filters["moment"] = lambda when: when.astimezone().strftime("%Y-%m-%d %H:%M")
    environment.filters["bytes"] = size
    environment.filters["query"] = lambda values: urlencode({key: value for key, value in values.items() if value})
    environment.filters["list_of_two"] = lambda value: (value, value)
    environment.globals["flag_meanings"] = FLAGS
    return environment
