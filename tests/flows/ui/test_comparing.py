"""Two runs compared in Chromium."""

from __future__ import annotations

import json
import re
import shutil

import httpx
import pytest

from data.artifacts.store import ArtifactStore
from flows.cli.app import main
from flows.report.scores import METRICS
from tests.helpers.evaluations import image_rows, rank, write_evaluation
from tests.helpers.ui_server import serving

pytestmark = pytest.mark.xdist_group("flow")


def test_two_rows_are_compared_as_the_command_does(open_page, served, capsys):
    page = open_page("/compare")
    baseline, run = page.locator("select[name=a]"), page.locator("select[name=b]")
    assert "untrained, image" in baseline.locator("option:checked").inner_text()
    assert "trained, image" in run.locator("option:checked").inner_text()
    page.get_by_role("button", name="Compare").focus()
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Differences")
    table.wait_for()
    shown = [re.split(r"\t", line) for line in table.inner_text().splitlines()[1:]]
    key = run.input_value().split()[0]
    models = ["--model", "untrained", "--model", "trained"]
    capsys.readouterr()
    assert main(["compare", key, key, *models, "--mode", "image", "--home", str(served.home), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["runs"]
    points = {label: said["metrics"][key]["difference"] for key, label in METRICS}
    assert {line[0]: float(line[3].replace("−", "-").replace("±", "")) for line in shown} == {
        label: pytest.approx(value, abs=0.051) for label, value in points.items()
    }
    assert page.locator(".query").count() > 0
    page.get_by_role("link", name="B: rank list").first.click()
    page.wait_for_url("**/queries/*")


def test_what_cannot_be_compared_is_one_sentence(served):
    answer = served.get("/compare?a=x&b=y")
    assert answer.status_code == 400
    assert "does not exist; choose one from the list" in answer.text


def test_the_usual_pair_has_the_same_test_images(tmp_path):
    store, texts = ArtifactStore(tmp_path), []
    few, images = image_rows()[::2], image_rows()
    for number, rows in enumerate((images, images, few)):
        ref = write_evaluation(store, rows, rank(rows, noise=1, seed=number), test_hash=f"{len(rows)}")
        texts.append(f"{ref.fingerprint} trained image")
    with serving(ArtifactStore(tmp_path)) as url:
        page = httpx.get(f"{url}/compare", timeout=240).text
        chosen = re.findall(r'<option value="([^"]*)" selected', page)
        assert sorted(chosen) == sorted(texts[:2])
        answer = httpx.get(f"{url}/compare", params={"a": texts[0], "b": texts[2]}, timeout=240)
        problem = re.search(r'role="alert">([^<]*)<', answer.text)[1]
        assert problem.startswith(f"evaluate/{texts[0][:8]} and evaluate/{texts[2][:8]} ")
        assert str(tmp_path) not in problem
        shutil.rmtree(store.root / "stages/evaluate" / texts[1].split()[0])
        page = httpx.get(f"{url}/compare", timeout=240).text
        assert "No two of these rows have the same test images" in page
        assert " selected" not in page
