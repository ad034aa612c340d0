"""Text to image in the terminal, after the scores of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flows.report.scores import signed
from flows.report.sentences import TEXT_METRICS, TextScore, TextScores, text_scores

_COLORS: Final = {"up": "green", "down": "red"}


def text_to_image(metrics: Mapping[str, Any], folder: Path, missing: str) -> Iterator[RenderableType]:
    """Yield the table of text to image of an evaluation and its protocol, or why it was not measured.

    metrics: metrics.json in `folder`. missing: the reason, a sentence; "" if it is unknown.
    """
    found = text_scores(metrics, folder)
    if found is not None:
        yield _table(found)
        if found.ceiling:
            yield Text(f"{found.ceiling}.")
        yield Text(found.about["description"], "dim")
    elif missing:
        yield Text(missing)


def _table(found: TextScores) -> Table:
    table = Table(
        title=Text(f"text to image, {found.source}: {found.sizes}"),
        caption=found.explanation,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for _, label in TEXT_METRICS:
        table.add_column(label, justify="right", overflow="fold")
    for row in found.rows:
        style = "" if row.model == "untrained" else "bold"
        table.add_row(Text(row.model, style), *(_cell(row, key, style) for key, _ in TEXT_METRICS))
    return table


def _cell(row: TextScore, key: str, style: str) -> Text:
    text = Text(f"{row.percent[key]:.1f}", style)
    if row.own:
        text.append(f"\n{row.own_interval(key)}", "dim not bold")
    if row.points is not None:
        color = _COLORS.get(row.verdict(key), "dim")
        text.append(f"\n{signed(row.points[key])}", color)
        if row.intervals:
            text.append(f"\n{row.interval(key)}", color)
    return text
