"""The charts of one world: variants with their seeds and intervals, differences against zero, and the sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

from flows.report.charts import PALETTE, Chart, Curve, Estimate, Key, interval_chart, line_chart
from flows.study.results.world import GROUP_TITLES, WorldResult
from flows.study.rows import RunRow, finished
from flows.study.statistics.means import SeedMean, seed_mean
from flows.study.statistics.scores import Difference, VariantScores

_TEXT: Final = "search by sentence"
_MODE_COLORS: Final = {"image": PALETTE[0], "fused": PALETTE[1], _TEXT: PALETTE[2]}
_OTHER: Final = PALETTE[3]
_KEYS: Final = tuple(Key(label=mode, color=color) for mode, color in _MODE_COLORS.items())
_SWEEPS: Final = {
    "queries": ("CLIP-SCGI over K", "K, inversion tokens"),
    "depth": ("CLIP-SCGI over depth", "depth, cross-attention blocks"),
}
Metric = Literal["mAP", "t2i_mAP"]


class Plot(NamedTuple):
    """A chart with the name of its file, without suffix: that of its group, and what it shows."""

    name: str
    chart: Chart


def plots(result: WorldResult) -> list[Plot]:
    """Return the charts that the results of a world allow."""
    return [Plot(name, chart) for name, chart in _charts(result) if chart is not None]


def _charts(result: WorldResult) -> Iterator[tuple[str, Chart | None]]:
    for group in result.groups:
        if group in _SWEEPS:
            yield f"{group}-sweep", sweep_chart(result.rows, group)
            continue
        about, variants, answers = GROUP_TITLES[group], result.variants_in(group), result.answers_in(group)
        yield f"{group}-accuracy", accuracy_chart(variants, about)
        yield f"{group}-text", accuracy_chart(variants, about, "t2i_mAP")
        yield f"{group}-differences", difference_chart(answers, about)


def accuracy_chart(variants: Sequence[VariantScores], about: str = "", metric: Metric = "mAP") -> Chart | None:
    """Return a metric of every variant and mode that has it, with its seeds. about: title of the group."""
    return interval_chart(
        [
            _estimate(each.title, each.mode if metric == "mAP" else _TEXT, _within_percent(each.metrics[metric]))
            for each in variants
            if metric in each.metrics
        ],
        title=_title(about, "accuracy" if metric == "mAP" else _TEXT),
        x_label="mAP, percent",
        keys=_KEYS,
        note="Dots: seeds. Dark stroke: their mean. Bar: 95 % t-interval of the mean, cut at 0 and 100.",
    )


def _title(about: str, what: str) -> str:
    return f"{about}: {what}" if about else what.capitalize()


def _within_percent(part: SeedMean) -> SeedMean:
    """Cut the interval of a percentage at 0 and 100; with two seeds it may reach far beyond."""
    if part.interval is None:
        return part
    low, high = part.interval
    return replace(part, interval=(max(0.0, low), min(100.0, high)))


def _estimate(label: str, mode: str, part: SeedMean) -> Estimate:
    color = _MODE_COLORS.get(mode, _OTHER)
    return Estimate(label=label, color=color, values=part.values, mean=part.mean, interval=part.interval)


def difference_chart(answers: Sequence[Difference], about: str = "") -> Chart | None:
    """Return the paired differences against zero, each in the metric that decides it."""
    return interval_chart(
        [_estimate(each.comparison.question, _decided_in(each), each.decisive.seeds) for each in answers],
        title=_title(about, "paired differences"),
        x_label="mAP, points",
        keys=_KEYS,
        zero=True,
        note="Each dot compares two runs of one seed; the dark stroke is their mean, the bar its 95 % t-interval. "
        "A bar that crosses zero shows no difference.",
    )


def _decided_in(answer: Difference) -> str:
    return answer.comparison.left[1] if answer.comparison.metric == "mAP" else _TEXT


def sweep_chart(rows: Sequence[RunRow], setting: str) -> Chart | None:
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
