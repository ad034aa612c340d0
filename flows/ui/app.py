"""The app: its routes, its error pages and its protection."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError, ConfigError
from flows.ui.content.library import MissingError
from flows.ui.routes import comparing, corrections, home, images, queries, search
from flows.ui.security import MOST_BYTES, Guard, TooLargeError
from flows.ui.site import STATIC, Site

_STATUS: Final = {MissingError: 404, ConfigError: 400}
ROUTES: Final = (home, images, corrections, queries, search, comparing)


def create_app(store: ArtifactStore, folders: Sequence[Path] = ()) -> ASGIApp:
    """Return the app for an artifact store. folders: where to look for images whose folder the store does not know."""
    site = Site(store, folders)
    app = FastAPI(title="clip-scgi", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for pages in ROUTES:
        pages.add_routes(app, site)
    _add_errors(app, site)

    def refuse(status: int, sentence: str) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await _problem(site, Request(scope), status, sentence)(scope, receive, send)

        return answer

    return Guard(app, token=site.token, refuse=refuse)


def _add_errors(app: FastAPI, site: Site) -> None:
    @app.exception_handler(ClipScgiError)
    def of_user(request: Request, error: ClipScgiError) -> Response:
        return _problem(site, request, _STATUS.get(type(error), 500), str(error))

    @app.exception_handler(HTTPException)
    def of_address(request: Request, error: HTTPException) -> Response:
        known = "This address does not exist." if error.status_code == HTTPStatus.NOT_FOUND else str(error.detail)
        return _problem(site, request, error.status_code, known)

    @app.exception_handler(RequestValidationError)
    def of_values(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        return _problem(site, request, 400, f"The address has a wrong value: {found}.")

    @app.exception_handler(Exception)
    def of_program(request: Request, error: Exception) -> Response:
        return _problem(site, request, 500, f"This page failed ({type(error).__name__}); the terminal has the details.")

    @app.exception_handler(TooLargeError)
    def of_size(request: Request, error: TooLargeError) -> Response:
        return _problem(site, request, 413, f"The file is larger than {MOST_BYTES >> 20} MiB; choose a smaller one.")


def _problem(site: Site, request: Request, status: int, sentence: str) -> Response:
    """Return an error as a page, or as JSON to a script."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"problem": sentence}, status)
    return site.page(request, "problem.html.j2", status=status, title=HTTPStatus(status).phrase, sentence=sentence)
