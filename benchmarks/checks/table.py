"""The table of all rows, as text and as JSON, and the exit status that it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from checks.rows import Row

_COLUMNS = ("part", "check", "want", "got", "result")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, aligned to be read in a terminal."""
    cells = [[row.part, row.name, row.want, row.got, _result(row)] for row in rows]
    cells = [[cell.replace("|", "/") for cell in line] for line in cells]
    widths = [max(len(line[i]) for line in [_COLUMNS, *cells]) for i in range(len(_COLUMNS))]
    widths[-1] = len(_COLUMNS[-1])  # a reason may be long; nothing stands behind it
    rule = ["-" * width for width in widths]
    return "".join(_line(line, widths) for line in [list(_COLUMNS), rule, *cells])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |\n"


def _result(row: Row) -> str:
    return f"{row.status}: {row.why}" if row.why else row.status


def write_json(path: Path, rows: Sequence[Row], about: Mapping[str, object]) -> None:
    """Write `about` and the rows; the numbers behind them are under ``figures``."""
    content = {**about, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def failed(rows: Sequence[Row], *, complete: bool) -> bool:
    """Return True if a check failed; complete: a check that the budget left out counts as a failure too."""
    return not rows or any(
        row.status == "fail" or (complete and row.status == "not run" and row.why.startswith("budget")) for row in rows
    )
