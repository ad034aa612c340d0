"""Two runs compared in Chromium."""

from __future__ import annotations

import json
import re

import pytest

from flows.cli.app import main
from flows.report.scores import METRICS

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
