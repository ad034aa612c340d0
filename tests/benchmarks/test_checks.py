"""The table of `make gpu` and `make rehearsal`: rows, budgets, processes that end early, JSON and exit status."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path

import pytest
from checks.part import Check, run_checks
from checks.rows import NotRun, Outcome, Row, all_of, at_least, at_most
from checks.runner import run_part
from checks.table import failed, table, write_json

from tests.helpers.places import REPO


def row(status: str, why: str = "", **changes: str) -> Row:
    return Row(**{"part": "p", "name": "n", "want": "w", "status": status, "why": why, **changes})


def rows_of(*works, seconds: float = 1, budget: float = 100, clock=lambda: 0.0) -> list[Row]:
    checks = [Check(name=f"c{i}", want="w", work=work, seconds=seconds) for i, work in enumerate(works)]
    return list(run_checks("p", checks, budget=budget, clock=clock))


def broken() -> Outcome:
    raise ValueError("first line\nsecond line")


def cannot() -> Outcome:
    raise NotRun("needs two GPUs")


def test_the_verdict_of_a_check_is_its_status():
    found = rows_of(
        lambda: Outcome(got="9", passed=True),
        lambda: Outcome(got="1", passed=False, figures={"x": 1.0}),
        lambda: Outcome(got="5"),
    )
    assert [(r.got, r.status) for r in found] == [("9", "pass"), ("1", "fail"), ("5", "measured")]
    assert found[1].figures == {"x": 1.0}


def test_a_check_that_raises_is_a_row_and_the_rest_goes_on():
    first, second, third = rows_of(broken, cannot, lambda: Outcome(got="fine", passed=True))
    assert (first.status, first.why) == ("fail", "ValueError: first line")
    assert (second.status, second.why) == ("not run", "needs two GPUs")
    assert third.status == "pass"


def test_a_check_that_does_not_fit_is_not_run_and_says_so():
    now = [0.0]

    def slow() -> Outcome:
        now[0] += 70
        return Outcome(got="", passed=True)

    first, second = rows_of(slow, slow, seconds=60, budget=100, clock=lambda: now[0])
    assert (first.status, first.seconds) == ("pass", 70)
    assert (second.status, second.why) == ("not run", "budget: takes about 60 s, and 30 s are left")


@pytest.mark.parametrize(("value", "least", "most"), [(0.5, True, False), (0.4, False, True), (math.nan, False, False)])
def test_targets(value, least, most):
    assert at_least(value, 0.5) is least
    assert at_most(value, 0.4) is most


def test_targets_that_are_not_judged():
    assert at_least(1, None) is at_most(1, None) is all_of(None, None) is None
    assert all_of(None, True) is True
    assert all_of(True, False) is False


# Processes ------------------------------------------------------------------------------------------------


def part(tmp_path: Path, then: str, budget: float = 60.0, grace: float = 3.0) -> list[Row]:
    """Run a part of three checks whose process does `then` after the first."""
    script = tmp_path / "script.py"
    code = """
        import os, sys, time
        from pathlib import Path
        from checks.files import add_row, announce
        from checks.part import Check
        from checks.rows import Row
        path = Path(sys.argv[sys.argv.index("--rows") + 1])
        announce(path, [Check(name=name, want="w", work=print, seconds=0) for name in ("one", "two", "three")])
        add_row(path, Row(part="p", name="one", want="w", status="pass"))
    """
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPO / 'benchmarks')!r})" + textwrap.dedent(code) + then)
    return run_part("p", [sys.executable, str(script)], tmp_path, budget, grace)


def told(rows: list[Row]) -> list[tuple[str, str]]:
    return [(found.name, found.status) for found in rows]


def test_a_part_that_exceeds_its_budget_is_stopped_and_keeps_its_rows(tmp_path):
    rows = part(tmp_path, "time.sleep(600)", budget=0, grace=8)
    assert told(rows) == [("one", "pass"), ("two", "not run"), ("three", "not run")]
    assert rows[1].why == "budget: the part was stopped after 0 s"


def test_a_part_that_crashes_fails_in_the_check_that_was_running(tmp_path):
    rows = part(tmp_path, "os._exit(7)")
    assert told(rows) == [("one", "pass"), ("two", "fail"), ("three", "not run")]
    assert rows[1].why == f"the process ended with status 7; see {tmp_path / 'p.log'}"
    assert rows[2].why == "the part had ended"


def test_a_part_that_ends_too_early_fails(tmp_path):
    assert told(part(tmp_path, "")) == [("one", "pass"), ("two", "fail"), ("three", "not run")]


def test_a_part_that_does_not_start_fails(tmp_path):
    (only,) = run_part("p", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 60)
    assert (only.name, only.status) == ("the whole part", "fail")


def test_a_line_cut_off_by_the_end_of_the_process_is_ignored(tmp_path):
    rows = part(tmp_path, 'path.open(\'a\').write(\'{"part": "p", "na\')')
    assert told(rows) == [("one", "pass"), ("two", "fail"), ("three", "not run")]


# Table, JSON, exit status ---------------------------------------------------------------------------------


def test_the_table_names_every_row_and_every_reason():
    text = table([row("pass", name="long name", got="12 | 3"), row("not run", "budget: no time left")])
    assert text == (
        "| part | check     | want | got    | result |\n"
        "| ---- | --------- | ---- | ------ | ------ |\n"
        "| p    | long name | w    | 12 / 3 | pass   |\n"
        "| p    | n         | w    |        | not run: budget: no time left |\n"
    )


def test_the_json_holds_the_rows_and_the_machine(tmp_path):
    write_json(tmp_path / "x.json", [row("pass", got="5")], {"device": "CPU"})
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["device"] == "CPU"
    assert [(r["name"], r["status"], r["got"]) for r in found["rows"]] == [("n", "pass", "5")]


@pytest.mark.parametrize(
    ("rows", "complete", "wanted"),
    [
        ([row("pass"), row("measured")], True, False),
        ([row("pass"), row("fail")], False, True),
        ([row("pass"), row("not run", "needs two GPUs")], True, False),
        ([row("pass"), row("not run", "budget: x")], False, False),
        ([row("pass"), row("not run", "budget: x")], True, True),
        ([], False, True),
    ],
)
def test_the_exit_status(rows, complete, wanted):
    assert failed(rows, complete=complete) is wanted
