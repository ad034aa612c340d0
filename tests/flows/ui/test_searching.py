"""Search in Chromium: by a sentence, by a picture, by an image of the dataset, by attributes."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from data.artifacts.store import ArtifactStore
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.ui.content.searching import Uploads
from flows.ui.content.work import Workshop
from reid.embedding.find import find_model
from reid.evaluation.search import search

pytestmark = pytest.mark.xdist_group("flow")
SENTENCE = "A woman is wearing a yellow shirt and white pants."


@pytest.fixture(scope="module")
def run(finished) -> RunContext:
    home, summary = finished
    indexed = summary["index"]
    images = IndexedImages(ref=indexed.artifact, root=Path(indexed.images_root))
    return RunContext(store=ArtifactStore(home), indexed=images)


def paths_of(page, served, run) -> list[str]:
    """Return the paths of the results of a page."""
    known = run.images.rows("path")["path"].to_pylist()
    links = page.locator(".grid .tile > a")
    rows = [int(re.search(r"/images/(\d+)", link.get_attribute("href"))[1]) for link in links.all()]
    return [known[row] for row in rows]


def expected(run, query) -> list[str]:
    model = find_model("demo", run.store)
    return [hit.path for hit in search(run, model=model, query=query, top=60, device="cpu")]


def test_a_sentence_finds_what_the_command_finds(open_page, served, run):
    page = open_page("/search")
    page.get_by_label("Sentence").focus()
    page.keyboard.type(SENTENCE)
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"\d+ nearest images to")).wait_for()
    assert paths_of(page, served, run) == expected(run, SENTENCE)
    assert page.evaluate("document.querySelector('.grid img').naturalHeight") > 0


def test_a_picture_is_uploaded_and_finds_what_the_command_finds(open_page, served, run):
    query = run.images.root / "query" / sorted(path.name for path in (run.images.root / "query").glob("*.jpg"))[0]
    page = open_page("/search", "narrow", "dark")
    page.get_by_label("Or a picture").set_input_files(query)
    page.get_by_role("button", name="Search").click()
    page.get_by_text(re.compile(r"\d+ nearest images")).wait_for()
    assert paths_of(page, served, run) == expected(run, query)
    assert page.evaluate("document.querySelector('.asked img').naturalHeight") > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_image_of_the_dataset_finds_others_and_attributes_narrow_the_result(open_page, served, run):
    page = open_page(f"{served.dataset}/images/20")
    page.get_by_role("link", name="Find similar images").click()
    page.get_by_text(re.compile(r"\d+ nearest images")).wait_for()
    found = page.locator(".tile").count()
    own = run.images.rows("path")["path"][20].as_py()
    assert found
    assert own not in paths_of(page, served, run)
    page.get_by_text("Attributes", exact=True).click()
    value = page.get_by_label("Gender").locator("option").nth(1).get_attribute("value")
    page.get_by_label("Gender").select_option(value)
    page.get_by_label("Sentence").fill(SENTENCE)
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**gender=*")
    page.get_by_text(re.compile(r"\d+ nearest images to")).wait_for()
    assert page.locator(".tile").count() < 60
    page.get_by_label("Sentence").fill("")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url(f"**/datasets/*?gender={value}")


def test_what_cannot_be_searched_for_is_one_sentence(open_page, tmp_path):
    (tmp_path / "no.jpg").write_bytes(b"no image")
    page = open_page("/search")
    page.get_by_label("Or a picture").set_input_files(tmp_path / "no.jpg")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("not an image in a supported format").wait_for()
    page = open_page("/search")
    page.get_by_label("Sentence").fill("coat " * 200)
    page.get_by_role("button", name="Search").click()
    page.get_by_text("describe a person in one or two sentences").wait_for()


@pytest.mark.parametrize("query", ["?model=x", "?dataset=x", "?image=99999", "?image=x", "?picture=gone"])
def test_a_wrong_address_is_one_clear_sentence(served, query):
    answer = served.get(f"/search{query}")
    assert answer.status_code == 404
    assert re.search(r'role="alert">.*(does not exist|no longer in memory)', answer.text)


def test_an_empty_store_says_what_to_do(tmp_path):
    from tests.helpers.ui_server import serving

    (tmp_path / "stages").mkdir()
    with serving(ArtifactStore(tmp_path)) as url:
        assert "run a recipe first" in httpx.get(f"{url}/search?text=x").text
        assert "No dataset is indexed yet" in httpx.get(url).text


def test_failed_work_can_be_asked_for_again():
    workshop, calls = Workshop(), []

    def work(tell):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")
        return "made"

    def ended(job):
        while not job.ended:
            pass
        return job

    assert "ValueError: once" in ended(workshop.ask("a", work)).problem
    assert workshop.find("a").problem
    assert ended(workshop.ask("a", work)).result == "made"
    assert ended(workshop.ask("a", work)).result == "made"
    assert len(calls) == 2
    assert Uploads().get("x") is None
