"""Rows of the results table in percent, with differences to the untrained model in points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reid.evaluation.intervals import Interval, QueryScores, intervals, query_scores_of, verdict

METRICS: Final = (("mAP", "mAP"), ("mINP", "mINP"), ("rank1", "R1"), ("rank5", "R5"), ("rank10", "R10"))
"""Keys of metrics.json in the order of the tables, with their names."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the table: a model in an inference mode.

    percent: metric -> percent. deviation: metric -> standard deviation in points over drawn galleries; empty if the
    dataset has a gallery of its own. points: metric -> difference to the untrained model; None for untrained rows and
    if there is no untrained model. intervals: metric -> 95 % interval of the points; None if `intervals` returns None.
    against: inference mode of the untrained row.
    """

    model: str
    mode: str
    percent: dict[str, float]
    deviation: dict[str, float]
    points: dict[str, float] | None
    intervals: dict[str, Interval] | None
    against: str | None

    def verdict(self, key: str) -> str:
        """Return "up" or "down" where the interval of the points of metric `key` excludes zero, else "even"."""
        return verdict(self.intervals[key] if self.intervals else None)

    def side(self, key: str) -> str:
        """Return "below" if metric `key` lost points against the untrained model, else "over"."""
        return "below" if self.points and signed(self.points[key]).startswith("−") else "over"

    def interval(self, key: str) -> str:
        """Return the interval of metric `key` as text, or an empty text."""
        return interval_text(self.intervals[key]) if self.intervals else ""


def scores(metrics: Mapping[str, Any], rankings: Path | None = None) -> list[Score]:
    """Return the rows of metrics.json in their order.

    A trained row is compared with the untrained row of its mode or, if that does not exist (an untrained fusion is
    meaningless), with the untrained image mode. rankings: rankings.parquet of the same evaluation, which the intervals
    need.
    """
    untrained = {row["mode"]: row for row in metrics["results"] if row["model"] == "untrained"}
    queries: dict[tuple[str, str], QueryScores] = query_scores_of(metrics, rankings) if rankings else {}
    found = []
    for row in metrics["results"]:
        against = row["mode"] if row["mode"] in untrained else "image"
        base = untrained.get(against) if row["model"] != "untrained" else None
        ours, theirs = queries.get((row["model"], row["mode"])), queries.get(("untrained", against))
        found.append(
            Score(
                model=row["model"],
                mode=row["mode"],
                percent={key: 100 * row[key] for key, _ in METRICS},
                deviation={key: 100 * value for key, value in row.get("galleries", {}).get("std", {}).items()},
                points={key: 100 * (row[key] - base[key]) for key, _ in METRICS} if base else None,
                intervals=intervals(ours, theirs) if base else None,
                against=against if base else None,
            )
        )
    return found


def signed(points: float) -> str:
    """Return a difference with its sign, such as ``+21.3`` or ``−0.4``."""
    text = f"{abs(points):.1f}"
    if text == "0.0":
        return "±0.0"
    return f"{'+' if points > 0 else '−'}{text}"


def interval_text(interval: Interval) -> str:
    """Return an interval of points such as ``[+4.1, +9.0]``."""
    return f"[{signed(interval[0])}, {signed(interval[1])}]"


def percent_interval_text(interval: Interval) -> str:
    """Return the interval of a score in percent, such as ``52.1–61.9`` or ``97.9–100``: five columns fit a terminal."""
    return "–".join(f"{end:.1f}".replace("100.0", "100") for end in interval)
