"""Rows of runs.parquet: what the loop of a study writes, and what tables, charts and pages read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa

from flows.report.scores import METRICS

SCORES: Final = tuple(key for key, _ in METRICS)
"""Metrics of every row with a result, as fractions."""
TEXT_SCORES: Final = ("t2i_mAP", "t2i_rank1", "t2i_rank5", "t2i_rank10")
"""Metrics of search by sentence, as fractions. It has no inference mode: the row of image mode has them."""

_TEXT, _NUMBER, _FRACTION, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
RUNS: Final = pa.schema(
    [
        pa.field(name, kind)
        for kind, names in (
            (_TEXT, ("world", "variant", "title", "group", "method", "captions")),
            (_NUMBER, ("seed",)),
            (_TEXT, ("status", "error", "mode")),  # mode: null without a result
            (_FRACTION, (*SCORES, *TEXT_SCORES)),
            (_TEXT, ("t2i_source",)),  # of the sentences: captions or dataset
            (_NUMBER, ("t2i_sentences", "t2i_gallery")),
            (_FLAG, ("cgi", "cff")),
            (_NUMBER, ("inversion_tokens", "depth", "epochs", "steps")),
            (_FRACTION, ("seconds",)),
            (_TEXT, ("dataset", "dataset_hash")),
            (_NUMBER, ("n_query", "n_gallery")),
            (_TEXT, ("caption_artifact", "train", "evaluation", "cameras")),  # cameras: "unknown" or null
        )
        for name in names
    ]
)
"""runs.parquet: one row per run and inference mode, or one row with the reason why a run failed or was skipped."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run of a study in one inference mode, or a run that failed or was skipped.

    world: name of the recipe. scores: metric -> fraction, empty without a result. seconds: of training; None where it
    was found finished or resumed from a checkpoint. caption_artifact, train, evaluation: fingerprints. cameras:
    "unknown" in a dataset without cameras. inversion_tokens (K), depth: of CGI.
    """

    world: str
    variant: str
    title: str
    group: str
    method: str
    captions: str
    seed: int
    epochs: int
    status: Literal["ok", "failed", "skipped"]
    error: str | None = None
    mode: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    t2i_source: str | None = None
    t2i_sentences: int | None = None
    t2i_gallery: int | None = None
    cgi: bool | None = None
    cff: bool | None = None
    inversion_tokens: int | None = None
    depth: int | None = None
    steps: int | None = None
    seconds: float | None = None
    dataset: str | None = None
    dataset_hash: str | None = None
    n_query: int | None = None
    n_gallery: int | None = None
    caption_artifact: str | None = None
    train: str | None = None
    evaluation: str | None = None
    cameras: str | None = None

    @property
    def finished(self) -> bool:
        """Return True if the run has a result."""
        return self.status == "ok"

    def columns(self) -> dict[str, Any]:
        """Return the row as runs.parquet stores it, one column per metric."""
        values = asdict(self)
        return {**values.pop("scores"), **values}


def runs_table(rows: Sequence[RunRow]) -> pa.Table:
    """Return the rows as the table of runs.parquet."""
    return pa.Table.from_pylist([row.columns() for row in rows], schema=RUNS)


def finished(rows: Iterable[RunRow]) -> list[RunRow]:
    """Return the rows that have a result."""
    return [row for row in rows if row.finished]


def unfinished(rows: Iterable[RunRow]) -> list[RunRow]:
    """Return the rows of runs without a result."""
    return [row for row in rows if not row.finished]


def worlds_of(rows: Iterable[RunRow]) -> list[str]:
    """Return the worlds of the rows, in their order."""
    return list(dict.fromkeys(row.world for row in rows))


def without_cameras(rows: Iterable[RunRow]) -> bool:
    """Return True if a result is that of a dataset without cameras."""
    return any(row.cameras == "unknown" for row in rows)
