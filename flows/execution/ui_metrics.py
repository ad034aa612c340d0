"""The tables of metrics in Prefect's UI: an evaluation beside the previous one, and text to image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.artifacts.inventory import take_inventory
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import counted
from data.files import read_json
from flows.report.scores import METRICS, Score, interval_text, scores, signed
from flows.report.sentences import TEXT_METRICS, TextScore, TextScores
from reid.evaluation.intervals import METHOD, Interval, QueryScores, intervals, query_scores_of
from reid.evaluation.protocol import camera_note, mode_notes
from reid.evaluation.sentences.scores import TEXT_METHOD

Cells = dict[str, str | float | None]
"""One row of a table: column -> the content of its cell."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluate artifact. metrics: its metrics.json. queries: (model, mode) -> the scores of each query."""

    metrics: Mapping[str, Any]
    queries: Mapping[tuple[str, str], QueryScores]

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Return the evaluate artifact in `folder`."""
        metrics = read_json(folder / "metrics.json")
        return cls(metrics=metrics, queries=query_scores_of(metrics, folder / "rankings.parquet"))

    def has_images_of(self, other: Evaluated) -> bool:
        """Return True if both were evaluated on the same images."""
        return bool(self.metrics["protocol"].get("test_hash") == other.metrics["protocol"].get("test_hash"))


def metrics_rows(now: Evaluated, before: Evaluated | None) -> list[Cells]:
    """Return one row per model and mode: percent, and the points gained since `before` with their interval."""
    was = {} if before is None else {(row.model, row.mode): row for row in scores(before.metrics)}
    old_queries = {} if before is None or not now.has_images_of(before) else before.queries
    rows: list[Cells] = []
    for row in scores(now.metrics):
        which = (row.model, row.mode)
        found = intervals(now.queries.get(which), old_queries.get(which))
        cells = {label: f"{row.percent[key]:.1f}{_gain(key, row, was.get(which), found)}" for key, label in METRICS}
        rows.append({"model": row.model, "mode": row.mode, **cells})
    return rows


def _gain(key: str, now: Score, was: Score | None, found: Mapping[str, Interval] | None) -> str:
    """Return the points gained in metric `key` with their interval, in brackets; empty without a row `was`."""
    if was is None:
        return ""
    interval = f" {interval_text(found[key])}" if found else ""
    return f" ({signed(now.percent[key] - was.percent[key])}{interval})"


def metrics_note(now: Evaluated, before: Evaluated | None) -> str:
    """Return the description of the table: dataset, sizes, and what stands in brackets."""
    protocol = now.metrics["protocol"]
    gallery = counted(protocol["n_gallery"], "gallery image")
    note = f"{protocol['dataset']}: {counted(protocol['n_query'], 'query')}, {gallery}, percent"
    cameras = camera_note(protocol)
    note += f"; {cameras}" if cameras else ""
    note += "".join(f"; {text.rstrip('.')}" for text in mode_notes(protocol))
    if before is None:
        return f"{note}; the first run of this dataset"
    note += "; in brackets the points gained since the previous run"
    if not now.has_images_of(before):
        return f"{note}, without an interval, because its images differ"
    return f"{note}, with the {METHOD}; an interval that contains zero does not show a difference"


def text_rows(found: TextScores) -> list[Cells]:
    """Return one row per model: percent, and the points gained over the untrained model with their interval."""
    return [{"model": row.model, **{label: _text_cell(row, key) for key, label in TEXT_METRICS}} for row in found.rows]


def _text_cell(row: TextScore, key: str) -> str:
    if row.points is None:
        return f"{row.percent[key]:.1f}"
    interval = f" {row.interval(key)}" if row.intervals else ""
    return f"{row.percent[key]:.1f} ({signed(row.points[key])}{interval})"


def text_note(found: TextScores) -> str:
    """Return the description of the table: whose sentences, how many, and what stands in brackets."""
    ceiling = f"; {found.ceiling}" if found.ceiling else ""
    gained = f"; in brackets the points gained over the untrained model. {TEXT_METHOD}" if found.has_intervals else ""
    return f"text to image, {found.source}: {found.sizes}, percent{ceiling}{gained}"


def previous_evaluation(store: ArtifactStore, evaluation: ArtifactRef) -> Path | None:
    """Return the folder of the newest other evaluation of the same dataset, or None if there is none."""
    dataset = _dataset(evaluation.folder)
    for entry in reversed(take_inventory(store, evaluation.stage).entries):
        if entry.fingerprint == evaluation.fingerprint or store.problems(entry.stage, entry.fingerprint):
            continue
        if _dataset(entry.folder) == dataset:
            return entry.folder
    return None


def _dataset(evaluation: Path) -> str:
    """Return the name of the dataset that the evaluate artifact in a folder is about."""
    return str(read_json(evaluation / "metrics.json")["protocol"]["dataset"])
