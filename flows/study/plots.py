"""The charts of a study: every variant with its seeds and interval, the differences against zero, and the sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

from flows.report.charts import PALETTE, Chart, Curve, Estimate, Key, interval_chart, line_chart
from flows.study.rows import RunRow, finished
from flows.study.table import Difference, SeedMean, VariantScores, seed_mean

_MODE_COLORS: Final = {"image": PALETTE[0], "fused": PALETTE[1]}
_OTHER: Final = PALETTE[2]
_KEYS: Final = tuple(Key(label=mode, color=color) for mode, color in _MODE_COLORS.items())
_SWEEPS: Final = {
    "queries": ("CLIP-SCGI over K", "K, inversion tokens"),
    "depth": ("CLIP-SCGI over depth", "depth, cross-attention blocks"),
}


class Plot(NamedTuple):
    """A chart with the name of its file, without suffix."""

    name: str
    chart: Chart


def plots(rows: Sequence[RunRow], variants: Sequence[VariantScores], answers: Sequence[Difference]) -> list[Plot]:
    """Return the charts that the results allow. variants, answers: the statistics of `rows`."""
    found = {
        "accuracy": accuracy_chart([each for each in variants if each.group in ("main", "why")]),
        "differences": difference_chart(answers),
        "queries": sweep_chart(rows, "queries"),
        "depth": sweep_chart(rows, "depth"),
    }
    return [Plot(name, chart) for name, chart in found.items() if chart is not None]


def accuracy_chart(variants: Sequence[VariantScores]) -> Chart | None:
    """Return the mAP of every variant and mode with its seeds."""
    return interval_chart(
        [_estimate(each.title, each.mode, _within_percent(each.metrics["mAP"])) for each in variants],
        title="Accuracy",
        x_label="mAP, percent",
        keys=_KEYS,
        note="Dots: seeds. Dark stroke: their mean. Bar: 95 % t-interval of the mean, cut at 0 and 100.",
    )


def _within_percent(part: SeedMean) -> SeedMean:
    """Cut the interval of a percentage at 0 and 100; with two seeds it may reach far beyond."""
    if part.interval is None:
        return part
    low, high = part.interval
    return replace(part, interval=(max(0.0, low), min(100.0, high)))


def _estimate(label: str, mode: str, part: SeedMean) -> Estimate:
    color = _MODE_COLORS.get(mode, _OTHER)
    return Estimate(label=label, color=color, values=part.values, mean=part.mean, interval=part.interval)


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


def sweep_chart(rows: Sequence[RunRow], setting: Literal["queries", "depth"]) -> Chart | None:
    """Return mAP over the setting that the variants of the group of that name change, one curve per mode."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in finished(rows):
        value = row.inversion_tokens if setting == "queries" else row.depth
        if row.group == setting and row.mode and value is not None:
            found.setdefault(row.mode, {}).setdefault(value, []).append(100 * row.scores["mAP"])
    curves = [
        curve
        for mode, points in found.items()
        for curve in _curves(mode, {value: seed_mean(points[value]) for value in sorted(points)})
    ]
    shown = [y for curve in curves for _, y in curve.points]
    title, x_label = _SWEEPS[setting]
    return line_chart(
        curves,
        title=title,
        x_label=x_label,
        y_format=lambda value: f"{value:g}",
        y_bounds=(min(shown, default=0.0), max(shown, default=1.0)),
        x_ticks=sorted({value for points in found.values() for value in points}),
        note="Means of mAP in percent; dashed: their 95 % t-intervals.",
    )


def _curves(mode: str, means: Mapping[int, SeedMean]) -> list[Curve]:
    """Return the means as a curve with dots, and the edges of their intervals as faint dashed ones."""
    color = _MODE_COLORS.get(mode, _OTHER)
    edges = [
        [(value, part.interval[end]) for value, part in means.items() if part.interval is not None] for end in (0, 1)
    ]
    middle = Curve(label=mode, points=[(value, part.mean) for value, part in means.items()], color=color, dots=True)
    return [middle, *(Curve(label=mode, points=edge, color=color, faint=True, dash=(3, 3)) for edge in edges)]
