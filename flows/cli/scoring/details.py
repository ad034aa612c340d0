"""The breakdown of an evaluation in the terminal, and its files in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from captioning.audit.stage import AuditStage
from captioning.corrections.stage import find_captions
from data.artifacts.store import ArtifactRef
from data.errors import ConfigError, RetryableError, WeightsError
from data.files import read_json
from data.stages.stage import RunContext
from flows.preflight.disk import writable
from flows.recipes import Recipe
from flows.report.retrieval import leading_row
from flows.report.scores import percent_interval_text
from flows.terminal import notice_line, plain_console, progress_bar
from reid.evaluation.breakdown import ATTRIBUTES_FILE, CAMERA_PAIRS_FILE, BreakdownStage
from reid.evaluation.intervals import MIN_QUERIES, SCORE_METHOD
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import evaluation_rows

_SHOWN: Final = 30
"""Rows of a table; of a longer one, those with the lowest mAP."""
Row = dict[str, Any]


def check_folder(out: Path | None) -> None:
    """Raise ConfigError if files cannot be written into the folder `out`, before anything is computed."""
    if out is not None and not writable(out):
        raise ConfigError(f"evaluate: --out: {out} is not a folder that can be written; name another one")


def show_details(run: RunContext, stage: EvaluateStage, recipe: Recipe, *, out: Path | None, breakdown: bool) -> None:
    """Print the breakdown of an evaluation, write its files into the folder `out`, or both."""
    broken = BreakdownStage(evaluation=stage, audit=_audit(run, recipe))
    with progress_bar(broken.name) as progress:
        folder = broken.make(run.with_progress(progress)).ref.folder
    for notice in _notices(run, broken, recipe):
        plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
    if breakdown:
        metrics = read_json(stage.make(run).ref.folder / "metrics.json")
        _print(folder, leading_row(metrics["results"], recipe.report.mode))
    if out is not None:
        from reid.evaluation.download import write_download

        for path in write_download(run, broken, out):
            plain_console().print(f"written   {path}", highlight=False, soft_wrap=True)


def _audit(run: RunContext, recipe: Recipe) -> ArtifactRef | None:
    """Return the audit of the captions of these images, made if it does not exist; None if they are not captioned."""
    captions = known_captions(run, recipe)
    if captions is None:
        return None
    with progress_bar(AuditStage.name) as progress:
        return AuditStage(captions=captions, config=recipe.audit).make(run.with_progress(progress)).ref


def known_captions(run: RunContext, recipe: Recipe) -> ArtifactRef | None:
    """Return the captions of these images by the captioner of a recipe, None if they do not exist here."""
    try:
        return find_captions(run, recipe.caption)
    except (ConfigError, WeightsError, RetryableError):  # the captioner is unavailable: it has not captioned them here
        return None


def _notices(run: RunContext, broken: BreakdownStage, recipe: Recipe) -> Iterator[str]:
    """Yield why a table of the breakdown is empty."""
    rows = evaluation_rows(run.images, broken.evaluation.config)
    if rows.drawn:
        yield "no breakdown: the galleries of this evaluation are drawn, and rankings are kept for the first one only"
        return
    if not rows.cameras:
        yield "no camera pairs: the cameras of this dataset are unknown"
    if broken.audit is None:
        yield (
            "no attributes: these images are not captioned here with the captioner of the recipe; run "
            f"`clip-scgi caption {recipe.name}` with the same --set first"
        )


def _print(folder: Path, leading: Row) -> None:
    """Print both tables for one model and mode."""
    console, who = plain_console(), f"{leading['model']}, {leading['mode']}"
    pairs = _rows(folder / CAMERA_PAIRS_FILE, leading)
    values = _rows(folder / ATTRIBUTES_FILE, leading)
    if pairs:
        head = ("query camera", "gallery camera")
        cells = [(str(row["query_camid"]), str(row["gallery_camid"])) for row in _lowest(pairs)]
        console.print(_table(f"per camera pair ({who})", head, cells, _lowest(pairs), len(pairs)))
    if values:
        cells = [(row["slot"], row["value"] or "(not named)") for row in _lowest(values)]
        console.print(_table(f"per attribute ({who})", ("attribute", "value"), cells, _lowest(values), len(values)))
    if pairs or values:
        console.print(f"breakdown {folder} (all models and modes)", highlight=False, soft_wrap=True)


def _rows(file: Path, leading: Row) -> list[Row]:
    wanted = [("model", "=", leading["model"]), ("mode", "=", leading["mode"])]
    rows: list[Row] = pq.read_table(file, filters=wanted).to_pylist()
    return rows


def _lowest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows to show, in their order; of many, those with the lowest mAP, lowest first."""
    return list(rows) if len(rows) <= _SHOWN else sorted(rows, key=lambda row: row["mAP"])[:_SHOWN]


def _table(title: str, head: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Row], total: int) -> Table:
    more = f"; the {len(rows)} rows with the lowest mAP of {total:,}" if len(rows) < total else ""
    table = Table(
        title=Text(f"{title}{more}"),
        caption=f"percent, with the {SCORE_METHOD} from {MIN_QUERIES} queries up",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name in head:
        table.add_column(name)
    for name in ("queries", "mAP", "R1"):
        table.add_column(name, justify="right")
    for own, row in zip(cells, rows, strict=True):
        table.add_row(*map(Text, own), f"{row['n_queries']:,}", _score(row, "mAP"), _score(row, "rank1"))
    return table


def _score(row: Row, name: str) -> Text:
    ends = (row[f"{name}_low"], row[f"{name}_high"])
    text = f"{100 * row[name]:.1f}"
    return Text(text if None in ends else f"{text} ({percent_interval_text((100 * ends[0], 100 * ends[1]))})")
