"""The table of results, for the page and the terminal alike: percent and points gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.report.intervals import Interval, QueryScores, intervals, query_scores_of, verdict

METRICS: Final = (("mAP", "mAP"), ("mINP", "mINP"), ("rank1", "R1"), ("rank5", "R5"), ("rank10", "R10"))
"""Keys of metrics.json in the order in which people read them, and the names they know them by."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row: a model in an inference mode.

    percent: metric -> percent. spread: metric -> standard deviation in points over drawn galleries, empty where the
    gallery is the data set's own. points: metric -> difference to the untrained model, or None for untrained rows and
    where there is none. intervals: metric -> 95 % interval of the points, or None where `intervals` gives none.
    against: the mode of the untrained row compared with.
    """

    model: str
    mode: str
    percent: dict[str, float]
    spread: dict[str, float]
    points: dict[str, float] | None
    intervals: dict[str, Interval] | None
    against: str | None

    def verdict(self, key: str) -> str:
        """Return "up" or "down" where the interval of the points of metric `key` excludes zero, else "even"."""
        return verdict(self.intervals[key] if self.intervals else None)

    def interval(self, key: str) -> str:
        """Return the interval of metric `key` as text, empty where there is none."""
        return interval_text(self.intervals[key]) if self.intervals else ""


def scores(metrics: Mapping[str, Any], rankings: Path | None = None) -> list[Score]:
    """Return the rows of metrics.json in its own order.

    rankings: rankings.parquet of the same evaluation, for the intervals; without it there are none.

    A trained row is compared with the untrained one of its mode or, where that is missing (an untrained fusion
    means nothing), with the untrained image mode.
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
                spread={key: 100 * value for key, value in row.get("galleries", {}).get("std", {}).items()},
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
