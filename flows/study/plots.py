"""The charts of a study: every variant with its seeds and interval, the differences against zero, and the sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from flows.report.charts import PALETTE, Chart, Curve, Estimate, Key, interval_chart, line_chart
from flows.study.table import Difference, Line, SeedMean, seed_mean

_MODE_COLORS: Final = {"image": PALETTE[0], "fused": PALETTE[1]}
_OTHER: Final = PALETTE[2]
_KEYS: Final = tuple(Key(label=mode, color=color) for mode, color in _MODE_COLORS.items())
_SWEEPS: Final = {
    "queries": ("CLIP-SCGI over K", "K, learnable queries"),
    "depth": ("CLIP-SCGI over depth", "depth, cross-attention blocks"),
}


class Plot(NamedTuple):
    """A chart with the name of its file, without suffix."""

    name: str
    chart: Chart


def plots(rows: Sequence[Mapping[str, Any]], lines: Sequence[Line], answers: Sequence[Difference]) -> list[Plot]:
    """Return the charts that the results allow. rows: of runs.parquet, which the others were made from."""
    found = {
        "accuracy": accuracy_chart([line for line in lines if line.group in ("main", "why")]),
        "differences": difference_chart(answers),
        **{group: sweep_chart(rows, group) for group in _SWEEPS},
    }
    return [Plot(name, chart) for name, chart in found.items() if chart is not None]


def accuracy_chart(lines: Sequence[Line]) -> Chart | None:
    """Return the mAP of every line with its seeds."""
    return interval_chart(
        [_estimate(line.title, line.mode, line.metrics["mAP"], within=(0.0, 100.0)) for line in lines],
        title="Accuracy",
        x_label="mAP, percent",
        keys=_KEYS,
        note="Dots: seeds. Dark stroke: their mean. Bar: 95 % t-interval of the mean, cut at 0 and 100.",
    )


def _estimate(
    label: str, mode: str, part: SeedMean, *, within: tuple[float, float] = (float("-inf"), float("inf"))
) -> Estimate:
    """Return a row of an interval chart. within: where the interval is cut; that of two seeds may reach far beyond."""
    interval = None
    if part.low is not None and part.high is not None:
        interval = max(within[0], part.low), min(within[1], part.high)
    color = _MODE_COLORS.get(mode, _OTHER)
    return Estimate(label=label, color=color, values=part.values, mean=part.mean, interval=interval)


def difference_chart(answers: Sequence[Difference]) -> Chart | None:
    """Return the paired differences of mAP against zero."""
    return interval_chart(
        [_estimate(each.comparison.question, each.comparison.left[1], each.metrics["mAP"]) for each in answers],
        title="Paired differences",
        x_label="mAP, points",
        keys=_KEYS,
        zero=True,
        note="Each dot compares two runs of one seed; the dark stroke is their mean, the bar its 95 % t-interval. "
        "A bar that crosses zero shows no difference.",
    )


def sweep_chart(rows: Sequence[Mapping[str, Any]], group: str) -> Chart | None:
    """Return mAP over the setting that the variants of `group` change ("queries" or "depth"), one curve per mode."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["group"] == group and row["status"] == "ok":
            found.setdefault(row["mode"], {}).setdefault(row[group], []).append(100 * row["mAP"])
    curves = [
        curve
        for mode, points in found.items()
        for curve in _curves(mode, {value: seed_mean(points[value]) for value in sorted(points)})
    ]
    shown = [y for curve in curves for _, y in curve.points]
    title, x_label = _SWEEPS[group]
    return line_chart(
        curves,
        title=title,
        x_label=x_label,
        y_format=lambda value: f"{value:g}",
        y_bounds=(min(shown, default=0.0), max(shown, default=1.0)),
        x_ticks=sorted({value for points in found.values() for value in points}),
        note="Means of mAP in percent; dashed: their 95 % t-intervals.",
    )


def _curves(mode: str, spreads: Mapping[int, SeedMean]) -> list[Curve]:
    """Return the means as a curve with dots, and the edges of their intervals as faint dashed ones."""
    color = _MODE_COLORS.get(mode, _OTHER)
    edges = [
        [(value, part.low) for value, part in spreads.items() if part.low is not None],
        [(value, part.high) for value, part in spreads.items() if part.high is not None],
    ]
    means = Curve(label=mode, points=[(value, part.mean) for value, part in spreads.items()], color=color, dots=True)
    return [means, *(Curve(label=mode, points=edge, color=color, faint=True, dash=(3, 3)) for edge in edges)]
