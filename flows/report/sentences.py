"""Rows of the table of text to image in percent, with differences to the untrained model in points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.errors import counted
from flows.report.scores import interval_text, percent_interval_text
from reid.evaluation.bootstrap import MIN_UNITS
from reid.evaluation.intervals import Interval, verdict
from reid.evaluation.sentences.measure import TEXT_RANKINGS_FILE, TextToImage
from reid.evaluation.sentences.scores import (
    TEXT_METHOD,
    SentenceScores,
    read_sentence_scores,
    sentence_intervals,
)
from reid.evaluation.sentences.source import RANKED, SOURCES, NoSentences

TEXT_METRICS: Final = (("mAP", "mAP"), ("rank1", "R1"), ("rank5", "R5"), ("rank10", "R10"))
"""Keys of text_to_image in metrics.json in the order of the tables, with their names."""
KEY: Final = "text_to_image"
"""Key in metrics.json; absent if nothing was measured."""
UNKNOWN_REASON: Final = (
    "text to image was not measured in this evaluation: the dataset does not have sentences of its own and its queries "
    "were not captioned, evaluate.text_to_image was off, or an earlier version evaluated"
)
CAPTION_REMEDY: Final = "set evaluate.text_to_image=captions to caption them"
"""What makes a run measure it without captions."""


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """One row of the table: a model, untrained or trained.

    percent: metric -> percent. own: metric -> interval of the percent. points: metric -> difference to the untrained
    model; None for the untrained row and without one. intervals: metric -> interval of the points. Intervals are None
    for fewer than `reid.evaluation.bootstrap.MIN_UNITS` people.
    """

    model: str
    percent: Mapping[str, float]
    own: Mapping[str, Interval] | None
    points: Mapping[str, float] | None
    intervals: Mapping[str, Interval] | None

    def verdict(self, key: str) -> str:
        """Return "up" or "down" where the interval of the points of metric `key` excludes zero, else "even"."""
        return verdict(self.intervals[key] if self.intervals else None)

    def interval(self, key: str) -> str:
        """Return the interval of the points of metric `key` as text, or an empty text."""
        return interval_text(self.intervals[key]) if self.intervals else ""

    def own_interval(self, key: str) -> str:
        """Return the interval of the percent of metric `key` as text, or an empty text."""
        return percent_interval_text(self.own[key]) if self.own else ""


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """The table of text to image. about: the key text_to_image of metrics.json."""

    about: TextToImage
    rows: tuple[TextScore, ...]

    @property
    def source(self) -> str:
        """Return whose sentences these are, in words."""
        return SOURCES[self.about["source"]]

    @property
    def sizes(self) -> str:
        """Return the numbers of sentences and images, in words."""
        about = self.about
        skipped = f", {about['n_skipped']:,} without a match" if about["n_skipped"] else ""
        cut = f", {about['n_truncated']:,} longer than the text tower reads" if about["n_truncated"] else ""
        return (
            f"{counted(about['n_sentences'], 'sentence')} about {counted(about['n_images'], 'image')} "
            f"({about['n_distinct']:,} distinct{skipped}{cut}), {counted(about['n_gallery'], RANKED[about['source']])}"
        )

    @property
    def ceiling(self) -> str:
        """Return what equal sentences of different people leave to be reached, in words; "" if there are none."""
        about = self.about
        if not about["n_sharing"]:
            return ""
        return (
            f"{about['n_sharing']:,} of {counted(about['n_identities'], 'identity')} have a sentence that another one "
            f"has too, so no model can reach an R1 above {100 * about['ceiling_rank1']:.1f} %"
        )

    @property
    def has_intervals(self) -> bool:
        """Return True if the scores have intervals."""
        return any(row.own for row in self.rows)

    @property
    def explanation(self) -> str:
        """Return what the figures and their intervals are, in words."""
        if not self.has_intervals:
            return f"percent; no interval: it needs sentences about {MIN_UNITS} people"
        gained = "; below it the points gained over the untrained model" if any(row.points for row in self.rows) else ""
        return f"percent, with its interval{gained}. {TEXT_METHOD}"


def text_scores(metrics: Mapping[str, Any], folder: Path | None = None) -> TextScores | None:
    """Return the table of an evaluation, None if text to image was not measured.

    metrics: its metrics.json. folder: of the same evaluation, whose text_rankings.parquet gives the intervals if it
    exists.
    """
    about: TextToImage | None = metrics.get(KEY)
    if about is None:
        return None
    file = folder / TEXT_RANKINGS_FILE if folder else None
    scored = read_sentence_scores(file) if file and file.exists() else {}
    untrained = next((row for row in about["results"] if row["model"] == "untrained"), None)
    rows = [_row(row, untrained, scored) for row in about["results"]]
    return TextScores(about=about, rows=tuple(rows))


def _row(
    row: Mapping[str, Any], untrained: Mapping[str, Any] | None, scored: Mapping[str, SentenceScores]
) -> TextScore:
    base = untrained if untrained is not None and row["model"] != "untrained" else None
    ours, theirs = scored.get(row["model"]), scored.get("untrained")
    return TextScore(
        model=row["model"],
        percent={key: 100 * row[key] for key, _ in TEXT_METRICS},
        own=sentence_intervals(ours) if ours else None,
        points={key: 100 * (row[key] - base[key]) for key, _ in TEXT_METRICS} if base else None,
        intervals=sentence_intervals(ours, theirs) if base and ours and theirs else None,
    )


def not_measured(found: NoSentences, remedy: str) -> str:
    """Return the sentence that text to image was not measured, with the reason. remedy: for missing captions."""
    return f"text to image was not measured: {found.reason}{f'; {remedy}' if found.lacks_captions else ''}"
