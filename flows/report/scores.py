"""Rows of the results table in percent, with differences to the untrained model in points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reid.evaluation.intervals import Interval, QueryScores, differences, each_interval, query_scores_of, verdict

METRICS: Final = (("mAP", "mAP"), ("mINP", "mINP"), ("rank1", "R1"), ("rank5", "R5"), ("rank10", "R10"))
"""Keys of metrics.json in the order of the tables, with their names."""

Intervals = dict[str, Interval] | None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the table: a model in an inference mode.

    percent: metric -> percent. deviation: metric -> standard deviation in points over drawn galleries; empty if the
    dataset has a gallery of its own. own: metric -> 95 % interval of the percent; None without rankings, for drawn
    galleries, and for few queries. points: metric -> difference to the untrained model; None for untrained rows and
    if there is no untrained model. intervals: metric -> 95 % interval of the points; None if `intervals` returns None.
    against: inference mode of the untrained row.
    """

    model: str
    mode: str
    percent: dict[str, float]
    deviation: dict[str, float]
    own: dict[str, Interval] | None
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
    results: list[dict[str, Any]] = metrics["results"]
    untrained = {row["mode"]: row for row in results if row["model"] == "untrained"}
    against = [
        None if row["model"] == "untrained" else row["mode"] if row["mode"] in untrained else "image" for row in results
    ]
    own, gains = _intervals(query_scores_of(metrics, rankings) if rankings else {}, results, against)
    found = []
    for row, mode, itself, gain in zip(results, against, own, gains, strict=True):
        base = None if mode is None else untrained.get(mode)
        found.append(
            Score(
                model=row["model"],
                mode=row["mode"],
                percent={key: 100 * row[key] for key, _ in METRICS},
                deviation={key: 100 * value for key, value in row.get("galleries", {}).get("std", {}).items()},
                own=itself,
                points={key: 100 * (row[key] - base[key]) for key, _ in METRICS} if base else None,
                intervals=gain if base else None,
                against=mode if base else None,
            )
        )
    return found


def _intervals(
    queries: Mapping[tuple[str, str], QueryScores], results: Sequence[Mapping[str, Any]], against: Sequence[str | None]
) -> tuple[list[Intervals], list[Intervals]]:
    """Return for each result the intervals of its scores, and of its difference to the untrained model in a mode.

    against: these modes. All are resampled together.
    """
    ours = [queries.get((row["model"], row["mode"])) for row in results]
    bases = [None if mode is None else queries.get(("untrained", mode)) for mode in against]
    own = [None if scores is None else scores.values for scores in ours]
    found = each_interval([*own, *map(differences, ours, bases)])
    return found[: len(own)], found[len(own) :]


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
