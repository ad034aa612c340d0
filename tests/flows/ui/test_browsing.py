"""The pages of datasets and images, as a person uses them in Chromium."""

from __future__ import annotations

import re

import pytest

UNNAMED = """[...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a, img")].filter(
  (e) => !(e.hasAttribute("alt") || e.ariaLabel || e.textContent.trim() || e.labels?.length
    || e.querySelector("img[alt]"))).length"""

pytestmark = pytest.mark.xdist_group("flow")


def check_layout(page) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{page.url} scrolls sideways"


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("narrow", "dark")])
def test_every_page_fits_both_sizes_and_schemes(open_page, served, size, scheme):
    run = re.search(r"/runs/\w+", served.get("/").text)[0]
    query = re.search(rf"{run}/queries/\d+", served.get(run).text)[0]
    for path in ("/", served.dataset, f"{served.dataset}/images/0", run, query, "/search", "/compare", "/nothing"):
        page = open_page(path, size, scheme)
        check_layout(page)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.search(r"\d+", ground)[0])
        assert red > 200 if scheme == "light" else red < 50
        unnamed = page.evaluate(UNNAMED)
        assert unnamed == 0, f"{page.url}: controls without a name"


def test_a_person_filters_and_opens_an_image_with_the_keyboard_alone(open_page, served):
    page = open_page("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.get_by_role("region", name="Datasets").get_by_role("link", name="demo", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/datasets/*")
    total = int(re.search(r"of (\d+) images", page.get_by_text(" images").first.inner_text())[1])
    page.get_by_label("Text in caption or path").focus()
    page.keyboard.type("woman")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=woman**")
    found = int(re.search(r"(\d+) of", page.get_by_role("status").inner_text())[1])
    assert 0 < found < total
    assert all("woman" in text for text in page.locator(".tile .caption").all_inner_texts())
    page.locator(".tile a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/images/*")
    assert f"1 of {found}" in page.get_by_role("navigation", name="Neighboring images").inner_text()
    assert page.evaluate("document.querySelector('main img').naturalHeight") > 0
    first = page.url
    page.keyboard.press("n")
    page.wait_for_function("url => location.href !== url", arg=first)
    page.keyboard.press("p")
    page.wait_for_url(first)


def test_choosing_a_value_filters_at_once(open_page, served):
    page = open_page(served.dataset)
    page.get_by_label("Split").select_option("query")
    page.wait_for_url("**split=query**")
    assert {text.rsplit(", ", 1)[1] for text in page.locator(".who").all_inner_texts()} == {"query"}
    page.get_by_text("Attributes", exact=True).click()
    page.get_by_label("Gender").select_option("female")
    page.wait_for_url("**gender=female**")
    assert "split=query" in page.url
    assert page.locator(".tile").count() == page.locator(".chips li[title=gender]", has_text="female").count()
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url(f"**{served.dataset}")
