"""One server of the page for all tests of this folder, and one browser per file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from data.artifacts.store import ArtifactStore
from tests.helpers.ui_server import serving

SIZES = {"wide": {"width": 1280, "height": 800}, "narrow": {"width": 390, "height": 844}}


@dataclass(frozen=True)
class Served:
    """The page of a small finished run. home: its artifact root, a copy."""

    url: str
    home: Path

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, follow_redirects=True, timeout=240, **options)

    @property
    def dataset(self) -> str:
        """Path of the page of the dataset."""
        return re.search(r"/datasets/\w+", self.get("/").text)[0]


@pytest.fixture(scope="session")
def served(finished, tmp_path_factory) -> Iterator[Served]:
    """Serve the small run; its images stay where they were indexed."""
    home = tmp_path_factory.mktemp("ui") / "home"
    shutil.copytree(finished[0], home, ignore=shutil.ignore_patterns("datasets", "work"))
    with serving(ArtifactStore(home)) as url:
        yield Served(url, home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium. Needs the program `chromium` and the package playwright.

    Playwright keeps an event loop running in this thread, which other tests must not find: so it ends with the file.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH: install chromium to run the tests of the page")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser, served) -> Iterator[Any]:
    """Return a function that opens a path in a window of its own and returns the page.

    At the end: no request left 127.0.0.1, no script failed, and nothing was blocked.
    """
    contexts, asked, problems = [], [], []

    def open_(path: str, size: str = "wide", scheme: str = "light", url: str = served.url) -> Any:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        context.set_default_timeout(120_000)  # of a busy machine; a page that is right does not wait
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if "Content Security" in said.text else None)
        page.goto(url + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []
    assert problems == []
