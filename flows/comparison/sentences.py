"""The difference of text to image between two evaluations of the same sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.comparison.differences import MetricDifference, metric_differences
from flows.comparison.runs import RankedRow
from flows.report.sentences import TEXT_METRICS
from reid.evaluation.bootstrap import Unit
from reid.evaluation.sentences.measure import TEXT_RANKINGS_FILE
from reid.evaluation.sentences.scores import SentenceScores, read_sentence_scores
from reid.evaluation.sentences.source import SOURCES


@dataclass(frozen=True, kw_only=True)
class TextDifference:
    """Text to image of one run against the baseline, over all sentences with a match.

    source: whose sentences they are, in words. metrics: empty if they cannot be compared. problem: why, a sentence, or
    "".
    """

    source: str = ""
    n_sentences: int = 0
    n_identities: int = 0
    metrics: Sequence[MetricDifference] = ()
    problem: str = ""


def text_difference(baseline: RankedRow, other: RankedRow, unit: Unit) -> TextDifference:
    """Return the difference of text to image, or why there is none.

    Sentences are the same if their text, their image and their number among its sentences are the same. Raises
    DataError when text_rankings.parquet cannot be read.
    """
    first, second = _scores(baseline), _scores(other)
    if first is None and second is None:
        return TextDifference(problem="text to image was not measured in either run")
    if first is None or second is None:
        where = "baseline" if second is None else "run"
        return TextDifference(problem=f"text to image is not compared: only the {where} measured it")
    place = first.keys.places_in(second.keys)
    are_same = len(first.keys) == len(second.keys) and bool((place >= 0).all())
    if baseline.run.sentences != other.run.sentences or not are_same:
        return TextDifference(problem="text to image is not compared: the sentences of the two runs differ")
    paired = second.take(place)
    if (paired.n_relevant != first.n_relevant).any():
        return TextDifference(problem="text to image is not compared: the galleries of the two runs differ")
    return TextDifference(
        source=SOURCES[baseline.run.sentences or "captions"],
        n_sentences=len(first.keys),
        n_identities=len(np.unique(first.pid)),
        metrics=metric_differences(first.values(), paired.values(), first.pid, TEXT_METRICS, unit),
    )


def _scores(ranked: RankedRow) -> SentenceScores | None:
    file: Path = ranked.run.folder / TEXT_RANKINGS_FILE
    if not ranked.run.sentences or not file.is_file():
        return None
    return read_sentence_scores(file).get(ranked.row.model)
