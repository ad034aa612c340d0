"""The first page: datasets and runs with their scores."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from data.artifacts.inventory import in_progress
from flows.report.scores import METRICS
from flows.ui.site import Site
from reid.evaluation.protocol import camera_note, mode_notes


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the address of the page."""

    @app.get("/")
    def home(request: Request) -> Response:
        snapshot = site.library.snapshot()
        notes = {run.key: camera_note(run.protocol) for run in snapshot.runs}
        mode_notes_of = {run.key: mode_notes(run.protocol) for run in snapshot.runs}
        return site.page(
            request,
            "home.html.j2",
            datasets=snapshot.datasets,
            names=site.names(snapshot.datasets),
            runs=snapshot.runs,
            notes=notes,
            mode_notes=mode_notes_of,
            damaged=snapshot.damaged,
            making=in_progress(site.store),
            metrics=METRICS,
        )
