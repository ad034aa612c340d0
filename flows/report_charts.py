"""Line charts as inline SVG, drawn by hand: crisp at any zoom, a few kilobytes, the same bytes every time.

Text inside a chart takes the page's font; the legend is HTML beside it, because only a browser knows how wide text is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

WIDTH: Final = 560  # of the view box, in its own units; the page scales it
HEIGHT: Final = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
# Markup escapes whatever is put in.
_LINE: Final = Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"/>')
_TEXT: Final = Markup('<text class="{}" x="{:g}" y="{:g}" text-anchor="{}">{}</text>')
_MAX_POINTS: Final = 400  # more cannot be told apart at this width


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `value` is the figure its legend entry shows; a `faint` line is background and has no entry."""

    label: str
    points: Points
    color: str
    dash: str = ""
    value: str = ""
    faint: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A finished chart: the drawing, and the lines its legend lists."""

    title: str
    note: str
    svg: Markup
    legend: tuple[Line, ...]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, evenly spaced, the outer two at or beyond `low` and `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)]


def thin(points: Points, limit: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Return the finite points, averaged over neighbours when there are more than `limit`."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(finite) // limit)
    if size <= 1:
        return finite
    bins = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_format: Callable[[float], str],
    y_bounds: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None,
    note: str = "",
) -> Chart | None:
    """Draw `lines` on common axes; None when no line has a point.

    y_bounds: the least and greatest value the y axis must show; by default the data's own, with zero.
    """
    drawn = [(line, thin(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return None
    frame = _Frame.around([points for _, points in drawn], y_bounds=y_bounds, x_ticks=x_ticks)
    parts = [frame.axes(x_label=x_label, y_format=y_format)]
    parts += [frame.curve(line, points) for line, points in sorted(drawn, key=lambda pair: not pair[0].faint)]
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )
    return Chart(title=title, note=note, svg=svg, legend=tuple(line for line, _ in drawn if not line.faint))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The axes of one chart and the way from data to view-box units."""

    x_low: float
    x_high: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    @classmethod
    def around(
        cls,
        curves: Sequence[Points],
        *,
        y_bounds: tuple[float, float] | None,
        x_ticks: Sequence[float] | None,
    ) -> _Frame:
        xs = [x for points in curves for x, _ in points]
        ys = [y for points in curves for _, y in points]
        low, high = y_bounds or (min(0.0, *ys), max(0.0, *ys))
        y_ticks = nice_ticks(low, high)
        if y_bounds:  # a share never needs a tick above 100 %
            y_ticks = [tick for tick in y_ticks if tick <= high * (1 + 1e-9)]
        x_low, x_high = min(xs), max(xs)
        if x_high == x_low:
            x_low, x_high = x_low - 1, x_high + 1
        inner = [tick for tick in nice_ticks(x_low, x_high, 7) if x_low <= tick <= x_high]
        return cls(x_low=x_low, x_high=x_high, x_ticks=x_ticks or inner, y_ticks=y_ticks)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, *, x_label: str, y_format: Callable[[float], str]) -> Markup:
        right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(_LINE.format("grid", _LEFT, y, right, y))
            parts.append(_TEXT.format("tick", _LEFT - 8, y + 4, "end", y_format(tick)))
        parts.append(_LINE.format("axis", _LEFT, bottom, right, bottom))
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(_LINE.format("axis", x, bottom, x, bottom + 4))
            parts.append(_TEXT.format("tick", x, bottom + 17, "middle", f"{tick:,.10g}"))
        parts.append(_TEXT.format("name", (_LEFT + right) / 2, HEIGHT - 4, "middle", x_label))
        return Markup("").join(parts)

    def curve(self, line: Line, points: Points) -> Markup:
        path = " ".join(f"{self.x(x):g},{self.y(y):g}" for x, y in points)
        dash = Markup(' stroke-dasharray="{}"').format(line.dash) if line.dash else ""
        kind = "faint" if line.faint else "line"
        drawn = Markup('<polyline class="{}" points="{}" stroke="{}"{}/>').format(kind, path, line.color, dash)
        if line.dots or len(points) == 1:
            dot = Markup('<circle cx="{:g}" cy="{:g}" r="2.6" fill="{}"/>')
            drawn += Markup("").join(dot.format(self.x(x), self.y(y), line.color) for x, y in points)
        return drawn
