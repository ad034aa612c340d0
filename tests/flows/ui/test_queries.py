"""The queries of a run in Chromium: worst first, rank lists, and relevance maps on demand."""

from __future__ import annotations

import re

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture(scope="module")
def run(served) -> str:
    return re.search(r"/runs/\w+", served.get("/").text)[0]


def test_queries_are_listed_worst_first_with_their_rank_lists(open_page, served, run):
    page = open_page(run)
    shown = [float(text) for text in re.findall(r"AP ([\d.]+) %", page.locator("main").inner_text())]
    (file,) = served.home.glob("stages/evaluate/*/rankings.parquet")
    rows = [row for row in pq.read_table(file).to_pylist() if (row["model"], row["mode"]) == ("trained", "image")]
    assert shown == [round(100 * ap, 1) for ap in sorted(row["ap"] for row in rows)]
    worst = min(rows, key=lambda row: row["ap"])
    marks = ["✓" if pid == worst["query_pid"] else "✗" for pid in worst["top_pids"][:10]]
    hits = page.locator(".query").first.locator(".hits li").all_inner_texts()
    assert [re.search("[✓✗]", text)[0] for text in hits] == marks
    page.get_by_role("link", name="trained, fused").click()
    page.wait_for_url("**mode=fused")
    assert page.locator("[aria-current=true]").inner_text().startswith("trained, fused")
    assert page.evaluate("[...document.images].slice(0, 5).every((image) => image.alt)")


def test_maps_are_drawn_on_demand_with_the_keyboard(open_page, served, run):
    page = open_page(run, "narrow", "dark")
    page.locator(".query a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/queries/*")
    button = page.get_by_role("button", name="Rank 2,")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"Similarity -?\d\.\d{3}")).wait_for()
    said = float(page.locator("#maps-note").inner_text().split()[1])
    listed = float(re.search(r"\d\.\d{3}", page.locator(".hits li").nth(1).inner_text())[0])
    assert said == pytest.approx(listed, abs=0.002), "the map explains the score of the rank list"
    page.wait_for_function("document.getElementById('map-hit').naturalHeight > 100")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_what_does_not_exist_is_not_explained(served, run):
    number = re.search(r"/queries/(\d+)", served.get(f"{run}?model=untrained&mode=image").text)[1]
    assert "data-maps" not in served.get(f"{run}/queries/{number}").text
    for path in (f"/queries/{number}/maps/1", "/queries/99999", "/queries/0/maps/0", "/queries/0/maps/1/side"):
        assert served.get(run + path).status_code == 404
    answer = served.get(f"{run}?model=trained&mode=nothing")
    assert "it has: untrained, image; trained, image" in answer.text
