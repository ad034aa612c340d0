"""Runs parts one after the other, each in a process of its own with a time budget, and collects their rows.

A process per part frees the memory of a device between parts, survives a crash, and can be stopped on time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from checks.files import Announced, read_report
from checks.rows import Row

GRACE = 3.0
"""Seconds that a part may exceed its budget before it is stopped."""
_WHOLE = Announced(name="the whole part", want="runs")
"""Stands for the checks of a process that ended before it announced them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the table. seconds: its budget; what it leaves is added to the budget of the next part."""

    name: str
    seconds: float


def run_parts(parts: Sequence[Part], script: Path, arguments: Sequence[str], folder: Path) -> list[Row]:
    """Run `parts` and return the rows of all, each check of each part exactly once.

    The process of a part is ``script --part NAME --seconds BUDGET --rows FILE`` with `arguments`; its output goes to
    NAME.log in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `run_part` stops its process
    rows: list[Row] = []
    end = time.monotonic()
    for part in parts:
        end += part.seconds
        budget = end - time.monotonic()
        print(f"{part.name}: up to {budget:.0f} s, output in {folder / part.name}.log", flush=True)
        found = run_part(part.name, [sys.executable, str(script), *arguments], folder, budget)
        counted = ", ".join(f"{count} {status}" for status, count in _counts(found))
        print(f"{part.name}: {counted}", flush=True)
        rows += found
    return rows


def run_part(name: str, command: Sequence[str], folder: Path, budget: float, grace: float = GRACE) -> list[Row]:
    """Run one part for at most `budget` + `grace` seconds and return its rows."""
    report, log = folder / f"{name}.rows", folder / f"{name}.log"
    report.unlink(missing_ok=True)
    full = [*command, "--part", name, "--seconds", f"{budget:.1f}", "--rows", str(report)]
    with log.open("w", encoding="utf-8") as stream:
        # A session of its own, so that stopping it stops the processes that it has started.
        process = subprocess.Popen(full, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: int | None = process.wait(timeout=max(0.0, budget) + grace)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _stop(process)
    found = read_report(report)
    report.unlink(missing_ok=True)
    left = found.announced[len(found.rows) :] if found.announced else [_WHOLE]
    return [*found.rows, *_missing(name, left, status, budget, log)]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the session of `process`, if anything of it is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _missing(part: str, left: Sequence[Announced], status: int | None, budget: float, log: Path) -> Iterator[Row]:
    """Yield rows for the checks that have none: the one that was running, and those that did not start."""
    if status is None:
        why = f"budget: the part was stopped after {budget:.0f} s"
        for check in left:
            yield Row(part=part, name=check.name, want=check.want, status="not run", why=why)
    elif left:
        why = f"the process ended with status {status}; see {log}"
        first, *rest = left
        yield Row(part=part, name=first.name, want=first.want, status="fail", why=why)
        for check in rest:
            yield Row(part=part, name=check.name, want=check.want, status="not run", why="the part had ended")


def _counts(rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    for status in ("pass", "fail", "measured", "not run"):
        count = sum(row.status == status for row in rows)
        if count:
            yield status, count
