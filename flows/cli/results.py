"""The end of a run: the table of results, the paths of the artifacts, and commands that show them."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.errors import counted
from data.files import read_json
from flows.cli.scoring.sentences import text_to_image
from flows.report.scores import METRICS, Score, percent_interval_text, scores, signed
from flows.summary import RunSummary
from flows.terminal import plain_console
from reid.config.trained import RECORDED_FILE
from reid.evaluation.intervals import (
    METHOD,
    MIN_QUERIES,
    SCORE_METHOD,
    Interval,
)
from reid.evaluation.protocol import camera_note, mode_notes, trained_elsewhere


def show_results(run: Mapping[str, Any]) -> None:
    """Print the table of results, the paths of the artifacts, and commands that show them. run: the flow's result."""
    console, summary = plain_console(), RunSummary.model_validate(run)
    evaluation = summary.find("evaluate")
    if evaluation is not None:
        folder = evaluation.artifact.folder
        metrics = read_json(folder / "metrics.json")
        console.print(results_table(metrics, folder / "rankings.parquet"))
        print_protocol(console, metrics["protocol"])
        for part in text_to_image(metrics, folder, summary.no_text_to_image):
            console.print(part)
    console.print(f"total stage time: {summary.seconds:.1f} s", highlight=False)
    for name, place in _places(summary):
        console.print(Text(f"{name:<9} {place}"), soft_wrap=True)


def print_protocol(console: Console, protocol: Mapping[str, Any]) -> None:
    """Print the protocol of an evaluation in words, and what to know about the scores of single modes."""
    console.print(Text(protocol["description"], "dim"))
    for note in mode_notes(protocol):
        console.print(Text(note, "yellow"))


def _places(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each result, and commands that show it."""
    folders = {stage.stage: stage.artifact.folder for stage in summary.stages}
    indexed = folders["index"]
    yield "index", f"{indexed / 'images.parquet'}"
    n_rejected = read_json(indexed / "dataset.json")["rejected"]
    if n_rejected:
        number = counted(n_rejected, "file or row", "files or rows")
        yield "rejected", f"{indexed / 'rejected.parquet'} ({number}, each with its reason)"
    if "caption" in folders:
        path = summary.captions.artifact.folder / "captions.parquet"
        yield "captions", f"{path}"
        read = f"pd.read_parquet({json.dumps(str(path), ensure_ascii=False)})"
        code = f'import pandas as pd; print({read}[["image_path", "caption"]].head().to_string())'
        yield "look", f"{python_command()} -c {shlex.quote(code)}"
    if "train" in folders:
        for place in _records(folders["train"]):
            yield "recorded", place
    if "audit" in folders:
        yield "audit", f"{folders['audit'] / 'captions.audit.html'}"
    if "report" in folders:
        page = folders["report"] / "report.html"
        yield "report", f"{page}"
        yield "look", f"{python_command()} -m webbrowser {shlex.quote(page.as_uri())}"


def _records(trained: Path) -> Iterator[str]:
    """Yield where TensorBoard and MLflow recorded the training of an artifact, if they did."""
    file = trained / RECORDED_FILE
    recorded = read_json(file) if file.exists() else {}
    if "tensorboard" in recorded:
        yield f"TensorBoard: {recorded['tensorboard']}"
    if "mlflow" in recorded:
        run = recorded["mlflow"]
        lost = f", without its last {counted(run['missing'], 'number')}" if run["missing"] else ""
        yield f"MLflow: {run['uri']}, run {run['run_id']}{lost}"


def python_command() -> str:
    """Return the shell command of this interpreter: ``python`` if that finds it, else its path (`make demo`)."""
    found = shutil.which("python")
    # Links stay unresolved: the interpreters of two virtual environments can be links to one file.
    same = found is not None and Path(found).absolute() == Path(sys.executable).absolute()
    return "python" if same else shlex.quote(sys.executable)


def results_table(metrics: Mapping[str, Any], rankings: Path | None = None) -> Table:
    """Return metrics.json as a table: one row per model and inference mode, in percent, trained rows with their gain.

    rankings: rankings.parquet of the same evaluation, which the intervals come from.
    """
    protocol = metrics["protocol"]
    version = f" ({protocol['version']})" if protocol["version"] else ""
    sizes = f"{counted(protocol['n_query'], 'query')}, {counted(protocol['n_gallery'], 'gallery image')}"
    note = camera_note(protocol)
    where = f"{trained_elsewhere(protocol)}{protocol['dataset']}"
    title = Text(f"{where}{version}: {sizes}{f'; {note}' if note else ''}")
    rows = scores(metrics, rankings)
    table = Table(
        title=title,
        caption=_caption(rows, ranked=rankings is not None, own=any(row.own for row in rows)),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # room for the intervals on a terminal of 64 columns
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    for _, label in METRICS:
        table.add_column(label, justify="right", overflow="fold")
    for row in rows:
        style = "" if row.model == "untrained" else "bold"
        own = row.own or {}
        cells = (_cell(row, key, style, own.get(key)) for key, _ in METRICS)
        table.add_row(Text(row.model, style), Text(row.mode, style), *cells)
    return table


def _caption(rows: list[Score], *, ranked: bool, own: bool) -> str | None:
    """Return the explanation below the table, None if it has neither points nor intervals.

    ranked: the rankings were given. own: the scores have intervals.
    """
    if not any(row.points for row in rows):
        return f"percent, with the {SCORE_METHOD}" if own else None
    caption = f"percent{', with its interval' if own else ''}; below it the points gained over the untrained model"
    others = sorted({f"{row.mode} against {row.against}" for row in rows if row.against not in (None, row.mode)})
    if others:
        caption += f" ({', '.join(others)} mode)"
    if any(row.intervals for row in rows):
        return f"{caption}, with the {METHOD}; colored only where it excludes zero"
    return f"{caption}; no interval: drawn galleries, or fewer than {MIN_QUERIES} queries" if ranked else caption


def _cell(row: Score, key: str, style: str, own: Interval | None) -> Text:
    text = Text(f"{row.percent[key]:.1f}", style)
    if key in row.deviation:
        text.append(f" ± {row.deviation[key]:.1f}")
    if own is not None:
        text.append(f"\n{percent_interval_text(own)}", "dim not bold")
    if row.points is not None:
        color = {"up": "green", "down": "red"}.get(row.verdict(key), "dim")
        text.append(f"\n{signed(row.points[key])}", color)
        if row.intervals is not None:
            text.append(f"\n{row.interval(key)}", color)
    return text
