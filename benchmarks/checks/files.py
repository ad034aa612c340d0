"""The file through which the process of a part reports: one JSON line that announces its checks, then one per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from checks.part import Check
from checks.rows import Row


@dataclass(frozen=True, kw_only=True)
class Announced:
    """A check that the process of a part has announced."""

    name: str
    want: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the process of a part has written; `announced` is empty if it ended before it knew its checks."""

    announced: list[Announced]
    rows: list[Row]


def announce(path: Path, checks: Sequence[Check]) -> None:
    """Write the names of all checks before the first of them runs."""
    path.write_text(json.dumps([{"name": check.name, "want": check.want} for check in checks]) + "\n")


def add_row(path: Path, row: Row) -> None:
    """Append a row. It survives if the process is stopped later."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(row)) + "\n")


def read_report(path: Path) -> Report:
    """Return what was written so far; a line cut off by the end of the process is ignored."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return Report(
        announced=[Announced(**check) for check in whole[0]] if whole else [], rows=[Row(**row) for row in whole[1:]]
    )
