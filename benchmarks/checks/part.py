"""A part of the table: checks that share a process, and the loop that runs them there."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from checks.rows import NotRun, Outcome, Row, Status


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row to be: what is wanted, and the function that finds it out.

    seconds: time to expect. A check that does not fit into what is left of its part's budget does not start.
    """

    name: str
    want: str
    work: Callable[[], Outcome]
    seconds: float


def run_checks(
    part: str, checks: Sequence[Check], *, budget: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Row]:
    """Run `checks` in order and yield a row for each. A check that raises is a row, and the next one runs."""
    end = clock() + budget
    for check in checks:
        left = end - clock()
        if check.seconds > left:
            why = f"budget: takes about {check.seconds:.0f} s, and {max(0, left):.0f} s are left"
            yield Row(part=part, name=check.name, want=check.want, status="not run", why=why)
        else:
            yield _run(part, check, clock)


def _run(part: str, check: Check, clock: Callable[[], float]) -> Row:
    started = clock()
    outcome, status, why = _outcome(check)
    return Row(
        part=part,
        name=check.name,
        want=check.want,
        status=status,
        got=outcome.got,
        why=why,
        seconds=round(clock() - started, 2),
        figures=outcome.figures,
    )


def _outcome(check: Check) -> tuple[Outcome, Status, str]:
    """Return what a check found, its status, and the reason if it failed with an error or did not run."""
    try:
        found = check.work()
    except NotRun as reason:
        return Outcome(got=""), "not run", str(reason)
    except Exception as error:  # whatever a library raises belongs into the table
        traceback.print_exc()
        return Outcome(got=""), "fail", described(error)
    if found.passed is None:
        return found, "measured", ""
    return found, "pass" if found.passed else "fail", ""


def described(error: BaseException) -> str:
    """Return an error in one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
