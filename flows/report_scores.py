"""The table of results, for the page and the terminal alike: percent, points gained, spans of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

METRICS: Final = (("mAP", "mAP"), ("mINP", "mINP"), ("rank1", "R1"), ("rank5", "R5"), ("rank10", "R10"))
"""Keys of metrics.json in the order in which people read them, and the names they know them by."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row: a model in an inference mode.

    percent: metric -> percent. spread: metric -> standard deviation in points over drawn galleries, empty where the
    gallery is the data set's own. points: metric -> difference to the untrained model, or None for untrained rows and
    where there is none. against: the mode of the untrained row compared with.
    """

    model: str
    mode: str
    percent: dict[str, float]
    spread: dict[str, float]
    points: dict[str, float] | None
    against: str | None


def scores(metrics: Mapping[str, Any]) -> list[Score]:
    """Return the rows of metrics.json in its own order.

    A trained row is compared with the untrained one of its mode or, where that is missing (an untrained fusion
    means nothing), with the untrained image mode.
    """
    untrained = {row["mode"]: row for row in metrics["results"] if row["model"] == "untrained"}
    found = []
    for row in metrics["results"]:
        against = row["mode"] if row["mode"] in untrained else "image"
        base = untrained.get(against) if row["model"] != "untrained" else None
        found.append(
            Score(
                model=row["model"],
                mode=row["mode"],
                percent={key: 100 * row[key] for key, _ in METRICS},
                spread={key: 100 * value for key, value in row.get("galleries", {}).get("std", {}).items()},
                points={key: 100 * (row[key] - base[key]) for key, _ in METRICS} if base else None,
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


def duration(seconds: float) -> str:
    """Return a time span as people say it: ``0.3 s``, ``48.2 s``, ``4 min 05 s``, ``2 h 13 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
