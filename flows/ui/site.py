"""What all pages share: the library, the tables, the pictures, and the templates."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from captioning.audit.flags import FLAGS
from captioning.corrections import Corrections
from captioning.corrections.current import Current
from data.artifacts.inventory import Entry
from data.artifacts.store import ArtifactStore
from data.errors import ConfigError, DataError
from flows.terminal import size
from flows.ui.content.library import Dataset, Library, MissingError
from flows.ui.content.models import Models
from flows.ui.content.pictures import Pictures
from flows.ui.content.rankings import AllRankings
from flows.ui.content.searching import Searcher, Uploads
from flows.ui.content.tables import ImageTable, Tables
from flows.ui.content.work import Workshop

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"


class Site:
    """The state of one server. folders: where to look for images (`data.images.root`)."""

    def __init__(self, store: ArtifactStore, folders: Sequence[Path] = ()) -> None:
        self.store = store
        self.library = Library(store)
        self.tables = Tables(store, folders)
        self.pictures = Pictures()
        self.rankings = AllRankings()
        self.models = Models(store)
        self.searcher = Searcher(store, self.models)
        self.uploads = Uploads()
        self.workshop = Workshop()
        self.corrections = CorrectionsByTemplate(store.root)
        self.token = secrets.token_urlsafe(24)
        self._templates = _environment()

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page, which browsers do not keep: the store may change."""
        html = self._templates.get_template(template).render(
            request=request, token=self.token, home=str(self.store.root), **values
        )
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})

    def table(self, dataset: Dataset, captions: Entry | None) -> ImageTable:
        """Return the images of a dataset with these captions and their audit; without them if a file is damaged.

        The corrections of the captions are among those files.
        """
        audit = None if captions is None else self.library.snapshot().audit_of(captions)
        try:
            found = self.tables.get(dataset.entry, captions, audit)
            self.corrections.current(found.template)
            return found
        except DataError as error:
            found = self.tables.get(dataset.entry, None, None)  # raises if the images themselves are damaged
            return ImageTable(found.table, found.root, f"Images are shown without captions: {error}.")

    def names(self, datasets: Sequence[Dataset]) -> dict[str, str]:
        """Return the key of each dataset -> its name, with the folder of its images where only the reader names it."""
        return {dataset.key: self._name_of(dataset) for dataset in datasets}

    def _name_of(self, dataset: Dataset) -> str:
        if dataset.name != dataset.description.reader:
            return dataset.name
        folder = self.tables.folder_of(dataset.entry)
        return f"{dataset.name}: {folder.name}" if folder is not None and folder.name else dataset.name


class CorrectionsByTemplate:
    """The corrections in an artifact root, opened once per template."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._open: dict[str, Corrections] = {}

    def get(self, template: str) -> Corrections:
        """Return the corrections of a template. Raises ConfigError if this installation does not have the template."""
        with self._lock:
            if template not in self._open:
                self._open[template] = Corrections.open(self._home, template)
            return self._open[template]

    def current(self, template: str | None) -> Current:
        """Return the corrections of all images; none without captions or for a template that is not installed.

        Raises DataError if the file of the template is damaged.
        """
        try:
            return Current.nothing() if template is None else self.get(template).current()
        except ConfigError:
            return Current.nothing()


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
    environment.filters["option"] = lambda value: (value, value)
    environment.globals["flag_meanings"] = FLAGS
    return environment
