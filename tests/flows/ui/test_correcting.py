"""Correcting captions in Chromium: the keyboard, the states, and two browsers at once."""

from __future__ import annotations

import re

import httpx
import pytest

from captioning.corrections import Corrections

pytestmark = pytest.mark.xdist_group("flow")


def state_of(page) -> str:
    return page.locator("#state").inner_text()


def wait_for_state(page, words: str) -> None:
    page.wait_for_function("words => document.getElementById('state').textContent.startsWith(words)", arg=words)


def current_of(served, page) -> object:
    """Return the correction of the image of a page, read from the store."""
    path = page.locator("h1").inner_text()
    found = [one for one in Corrections.open(served.home).current().values() if one.sha256 in digests(served, path)]
    return found[0] if found else None


def digests(served, path: str) -> set[str]:
    import pyarrow.parquet as pq

    (file,) = served.home.glob("stages/index/*/images.parquet")
    table = pq.read_table(file, columns=["path", "sha256"])
    return {sha for name, sha in zip(*(table[c].to_pylist() for c in ("path", "sha256")), strict=True) if name == path}


def test_a_caption_is_corrected_with_the_keyboard_alone(open_page, served):
    page = open_page(f"{served.dataset}/images/1")
    assert state_of(page) == "As the model wrote it"
    first = page.url
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("A man is wearing a green coat and blue jeans.")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/images/2?")
    page.keyboard.press("p")
    page.wait_for_url(first + "?")
    assert state_of(page).startswith("Corrected, by ")
    assert page.get_by_label("Upper color").input_value() == "green"
    saved = current_of(served, page)
    assert (saved.text, saved.provenance) == ("A man is wearing a green coat and blue jeans.", "human")
    assert saved.against.text == page.locator("#of-model").inner_text()

    page.keyboard.press("a")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("red")
    page.keyboard.press("Control+s")
    page.wait_for_function("document.querySelector('textarea').value.includes('red coat')")
    page.keyboard.press("Escape")
    page.keyboard.press("w")
    wait_for_state(page, "Marked as wrong")
    assert current_of(served, page).kind == "wrong"
    page.keyboard.press("k")
    wait_for_state(page, "The model's text is kept")
    assert page.get_by_label("Text").input_value() == page.locator("#of-model").inner_text()
    assert current_of(served, page).kind == "reset"


def test_the_list_shows_and_filters_corrected_captions(open_page, served):
    page = open_page(f"{served.dataset}/images/4")
    page.get_by_label("Your name").fill("Ada <b>")
    page.get_by_label("Text").fill("A woman is wearing a <i>purple</i> coat.")
    page.get_by_role("button", name="Save text").click()
    wait_for_state(page, "Corrected, by Ada <b>")
    page.goto(f"{served.url}{served.dataset}?text=<i>purple")
    assert page.locator(".tile").count() == 1
    assert page.locator(".tile .caption").inner_text() == "A woman is wearing a <i>purple</i> coat."
    assert "by Ada <b>" in page.locator(".tile").inner_text()
    page.goto(f"{served.url}{served.dataset}?state=corrected&upper_color=purple")
    assert page.locator(".tile").count() == 1
    page.goto(f"{served.url}{served.dataset}?state=model")
    assert "Ada" not in page.locator("main").inner_text()


def test_two_browsers_correct_one_caption_and_nothing_is_lost(open_page, served):
    first, second = (open_page(f"{served.dataset}/images/6") for _ in range(2))
    first.get_by_label("Your name").fill("First")
    second.get_by_label("Your name").fill("Second")
    first.get_by_label("Text").fill("A man is wearing a white shirt.")
    second.get_by_label("Text").fill("A man is wearing a black shirt.")
    first.get_by_role("button", name="Save text").click()
    wait_for_state(first, "Corrected, by First")
    second.get_by_role("button", name="Save text").click()
    clash = second.locator("#clash")
    clash.wait_for()
    assert second.evaluate("document.activeElement.id") == "clash", "the second is told"
    told = clash.inner_text()
    assert "A man is wearing a white shirt." in told
    assert "(First, " in told
    assert "A man is wearing a black shirt." in told
    assert second.evaluate("document.documentElement.scrollWidth") <= 1280
    history = Corrections.open(served.home).history(current_of(served, first).sha256)
    assert [(one.text, one.applied) for one in history] == [
        ("A man is wearing a white shirt.", True),
        ("A man is wearing a black shirt.", False),
    ]
    second.get_by_role("button", name="Use mine").click()
    wait_for_state(second, "Corrected, by Second")
    assert current_of(served, first).text == "A man is wearing a black shirt."
    first.get_by_label("Text").fill("A man is wearing a gray shirt.")
    first.get_by_role("button", name="Save text").click()
    first.get_by_role("button", name="Keep theirs").click()
    wait_for_state(first, "Corrected, by Second")
    assert first.get_by_label("Text").input_value() == "A man is wearing a black shirt."


def test_what_cannot_be_saved_is_one_sentence(open_page, served):
    page = open_page(f"{served.dataset}/images/8", "narrow", "dark")
    page.get_by_label("Text").fill("   ")
    page.get_by_role("button", name="Save text").click()
    page.get_by_text("the text of a caption is empty").wait_for()
    page.get_by_label("Gender").fill("robot")
    page.get_by_role("button", name="Save attributes").click()
    page.get_by_text("invalid gender 'robot'").wait_for()
    page.get_by_label("Gender").fill("")
    page.get_by_label("Upper color").fill("turquoise-ish")
    page.get_by_role("button", name="Save attributes").click()
    page.get_by_text("Upper color: 'turquoise-ish' would be read as").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert current_of(served, page) is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "text", "text": "x", "author": "a", "revision": -1}, 400),
        ({"kind": "delete", "author": "a", "revision": 0}, 400),
        ({"kind": "text", "text": "x", "author": "a", "revision": 0, "path": "/etc"}, 400),
        ({"kind": "text", "text": "x", "author": "", "revision": 0}, 422),
    ],
)
def test_a_wrong_body_is_refused(served, body, status):
    token = re.search(r'name="csrf-token" content="([^"]+)"', served.get("/").text)[1]
    headers = {"Origin": served.url, "X-CSRF-Token": token, "Accept": "application/json"}
    answer = httpx.post(f"{served.url}{served.dataset}/images/9/caption", json=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["problem"]
