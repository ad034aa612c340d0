"""The drawings of a study: every line with its seeds and interval, the differences against zero, and the sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from markupsafe import Markup

from flows.report.charts import Chart, Line, drawing, line_chart, nice_ticks
from flows.report.curves import INK, PALETTE
from flows.study.table import Difference, Spread, spread
from flows.study.table import Line as TableLine

MODE_COLORS: Final = {"image": PALETTE[0], "fused": PALETTE[1]}
_OTHER: Final = PALETTE[2]
_WIDE: Final = 760  # of an interval chart, in view-box units, as are the rest
_TOP, _BOTTOM, _RIGHT = 10, 40, 14
_BAR: Final = 14  # height of a bar; the dots on it spread over it, so that equal ones lie beside each other
_MARK: Final = Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}" stroke="{}"/>')
_RANGE: Final = Markup(
    '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" rx="3" fill="{}" fill-opacity="0.22" stroke="{}"/>'
)
_DOT: Final = Markup('<circle cx="{:g}" cy="{:g}" r="3.2" fill="{}" stroke="#fff" stroke-width="1"/>')
_MEAN: Final = Markup('<line x1="{0:g}" y1="{1:g}" x2="{0:g}" y2="{2:g}" stroke="{3}" stroke-width="2.4"/>')
_WORDS: Final = Markup('<text class="{}" x="{:g}" y="{:g}" text-anchor="{}">{}</text>')
_GRID_COLOR, _ZERO_COLOR = "#e8ebf1", "#566073"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with the name of its file, without suffix."""

    name: str
    chart: Chart


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One row of an interval chart."""

    label: str
    spread: Spread
    color: str


def plots(rows: Sequence[Mapping[str, Any]], lines: Sequence[TableLine], answers: Sequence[Difference]) -> list[Plot]:
    """Return the drawings that the results allow. rows: of runs.parquet; the others were made of them."""
    found = (
        accuracy_plot([line for line in lines if line.group in ("main", "why")]),
        difference_plot(answers),
        sweep_plot(rows, group="queries", title="CLIP-SCGI over K", x_label="K, learnable queries"),
        sweep_plot(rows, group="depth", title="CLIP-SCGI over depth", x_label="depth, cross-attention blocks"),
    )
    return [plot for plot in found if plot is not None]


def accuracy_plot(lines: Sequence[TableLine]) -> Plot | None:
    """Return the mAP of every line with its seeds."""
    rows = [
        Interval(label=line.title, spread=_within(line.metrics["mAP"]), color=MODE_COLORS.get(line.mode, _OTHER))
        for line in lines
    ]
    note = "Dots: seeds. Dark stroke: their mean. Bar: 95 % t-interval of the mean, cut at 0 and 100."
    return interval_plot(rows, name="accuracy", title="Accuracy", x_label="mAP, percent", note=note)


def _within(spread: Spread) -> Spread:
    """Cut the interval of a percentage at 0 and 100: that of two seeds may reach far beyond."""
    if spread.low is None or spread.high is None:
        return spread
    return replace(spread, low=max(0.0, spread.low), high=min(100.0, spread.high))


def difference_plot(answers: Sequence[Difference]) -> Plot | None:
    """Return the paired differences of mAP against zero."""
    rows = [
        Interval(
            label=answer.comparison.question,
            spread=answer.metrics["mAP"],
            color=MODE_COLORS.get(answer.comparison.left[1], _OTHER),
        )
        for answer in answers
    ]
    note = (
        "Each dot compares two runs of one seed; the dark stroke is their mean, the bar its 95 % t-interval. "
        "A bar that crosses zero shows no difference."
    )
    return interval_plot(
        rows, name="differences", title="Paired differences", x_label="mAP, points", zero=True, note=note
    )


def interval_plot(
    rows: Sequence[Interval], *, name: str, title: str, x_label: str, note: str, zero: bool = False
) -> Plot | None:
    """Draw one row per interval: a dot per seed, the mean as a stroke, the interval as a bar; None without rows.

    zero: draw the line of no difference, which is then always in sight.
    """
    if not rows:
        return None
    seen = [x for row in rows for x in (*row.spread.values, row.spread.low, row.spread.high) if x is not None]
    seen += [0.0] if zero else []

    def draw(layout: _Layout) -> Markup:
        axis = _Axis(ticks=nice_ticks(min(seen), max(seen), layout.ticks), layout=layout, rows=len(rows))
        parts = [axis.draw(x_label, zero=zero), *(axis.interval(row, number) for number, row in enumerate(rows))]
        return drawing((layout.width, axis.bottom + _BOTTOM), title, parts)

    colors = {row.color for row in rows}
    legend = tuple(Line(label=mode, points=(), color=color) for mode, color in MODE_COLORS.items() if color in colors)
    size = (_WIDE, _TOP + _BESIDE.row * len(rows) + _BOTTOM)
    chart = Chart(title=title, note=note, svg=draw(_BESIDE), narrow=draw(_ABOVE), legend=legend, size=size)
    return Plot(name=name, chart=chart)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the labels of an interval chart stand. row: height of one row; label: room left of the bars."""

    width: int
    row: int
    label: int
    above: bool
    ticks: int


_BESIDE: Final = _Layout(width=_WIDE, row=26, label=300, above=False, ticks=6)
_ABOVE: Final = _Layout(width=330, row=42, label=14, above=True, ticks=4)
"""For narrow screens, where the text of the wide drawing would be too small."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """The x axis of an interval chart."""

    ticks: Sequence[float]
    layout: _Layout
    rows: int

    @property
    def bottom(self) -> float:
        return _TOP + self.layout.row * self.rows

    def x(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return round(self.layout.label + share * (self.layout.width - self.layout.label - _RIGHT), 1)

    def draw(self, label: str, *, zero: bool) -> Markup:
        parts = []
        for tick in self.ticks:
            x = self.x(tick)
            is_zero = zero and abs(tick) < 1e-9
            parts.append(_MARK.format("line", x, _TOP, x, self.bottom, _ZERO_COLOR if is_zero else _GRID_COLOR))
            parts.append(_WORDS.format("tick", x, self.bottom + 16, "middle", f"{tick:g}".replace("-", "−")))
        parts.append(
            _WORDS.format(
                "name", (self.layout.label + self.layout.width - _RIGHT) / 2, self.bottom + 34, "middle", label
            )
        )
        return Markup("").join(parts)

    def interval(self, row: Interval, number: int) -> Markup:
        top = _TOP + self.layout.row * number
        y = top + self.layout.row - (_BAR if self.layout.above else self.layout.row / 2)
        if self.layout.above:
            parts = [_WORDS.format("halo", 0, top + 15, "start", row.label)]
        else:
            parts = [_WORDS.format("name", self.layout.label - 12, y + 4, "end", row.label)]
        if row.spread.low is not None and row.spread.high is not None:
            low, high = self.x(row.spread.low), self.x(row.spread.high)
            parts.append(_RANGE.format(low, y - _BAR / 2, high - low, _BAR, row.color, row.color))
        mean = self.x(row.spread.mean)
        parts.append(_MEAN.format(mean, y - _BAR / 2 - 2, y + _BAR / 2 + 2, INK))
        offsets = _offsets(len(row.spread.values))
        parts += [
            _DOT.format(self.x(value), y + offset, row.color)
            for value, offset in zip(row.spread.values, offsets, strict=True)
        ]
        return Markup("").join(parts)


def _offsets(count: int) -> list[float]:
    """Return `count` heights around 0, evenly spread over a bar; one alone is at 0."""
    reach = _BAR / 2 - 3
    return [0.0] if count == 1 else [round(reach * (2 * at / (count - 1) - 1), 2) for at in range(count)]


def sweep_plot(rows: Sequence[Mapping[str, Any]], *, group: str, title: str, x_label: str) -> Plot | None:
    """Return mAP over the setting that the variants of `group` change ("queries" or "depth"), a curve a mode."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["group"] == group and row["status"] == "ok":
            found.setdefault(row["mode"], {}).setdefault(row[group], []).append(100 * row["mAP"])
    lines = [
        line
        for mode, points in found.items()
        for line in _curve(mode, {value: spread(points[value]) for value in sorted(points)})
    ]
    shown = [y for line in lines for _, y in line.points]
    ticks = nice_ticks(min(shown, default=0.0), max(shown, default=1.0))
    chart = line_chart(
        lines,
        title=title,
        x_label=x_label,
        y_format=lambda value: f"{value:g}",
        y_bounds=(ticks[0], ticks[-1]),
        x_ticks=sorted({value for points in found.values() for value in points}),
        note="Means of mAP in percent; dashed: their 95 % t-intervals.",
    )
    if chart is None:
        return None
    return Plot(name=group, chart=chart)


def _curve(mode: str, spreads: Mapping[int, Spread]) -> list[Line]:
    """Return the means as a line with dots, and the edges of their intervals as faint dashed ones."""
    color = MODE_COLORS.get(mode, _OTHER)
    edges = [
        [(value, part.low) for value, part in spreads.items() if part.low is not None],
        [(value, part.high) for value, part in spreads.items() if part.high is not None],
    ]
    means = Line(label=mode, points=[(value, part.mean) for value, part in spreads.items()], color=color, dots=True)
    return [means, *(Line(label=mode, points=edge, color=color, faint=True, dash="3 3") for edge in edges)]
