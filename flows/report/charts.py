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
_PHONE: Final = (330, 250)  # view box of the drawing for narrow screens, where the wide one's text would be too small
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_TICK_ROOM: Final = 48  # least distance of two x labels
# Markup escapes whatever is put in.
_LINE: Final = Markup('<line class="{}" x1="{:g}" y1="{:g}" x2="{:g}" y2="{:g}"/>')
_TEXT: Final = Markup('<text class="{}" x="{:g}" y="{:g}" text-anchor="{}">{}</text>')
_SAMPLE: Final = Markup('<line class="line" x1="{0:g}" y1="{1:g}" x2="{2:g}" y2="{1:g}" stroke="{3}"{4}/>')
_LETTER: Final = 6.6  # width of a letter in the legend of a file, about
_FILE_STYLE: Final = Markup(
    "<style>text{font-family:sans-serif;fill:#1a2130}.tick{font-size:11.5px;fill:#6b7485}.name{font-size:12px}"
    ".title{font-size:15px;font-weight:600}.grid{stroke:#e8ebf1}.axis{stroke:#aab2c0}"
    "polyline{fill:none;stroke-linejoin:round}.line{stroke-width:2.2}.faint{stroke-width:1.1}</style>"
    '<rect width="100%" height="100%" fill="#fff"/>'
)
"""Of a drawing that is a file of its own; the white ground is for viewers that are dark."""
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
    """A finished chart: the drawing, the same for narrow screens, and the lines its legend lists.

    size: of `svg`, in view-box units.
    """

    title: str
    note: str
    svg: Markup
    narrow: Markup
    legend: tuple[Line, ...]
    size: tuple[float, float]

    def as_file(self) -> str:
        """Return the drawing as an SVG file of its own, with title, legend and style, which in a page are HTML."""
        legend, bottom = self._legend()
        place = '<svg y="{:g}" width="{:g}" height="{:g}" '.format(bottom + 14, *self.size)
        inner = Markup(str(self.svg).replace("<svg ", place, 1))
        title = _TEXT.format("title", 4, 18, "start", self.title)
        whole = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:g} {:g}">{}{}{}{}</svg>\n')
        return str(whole.format(self.size[0], self.size[1] + bottom + 14, _FILE_STYLE, title, legend, inner))

    def _legend(self) -> tuple[Markup, float]:
        """Return the legend below the title, in as many rows as it needs, and the baseline of its last row."""
        parts, x, y = [], 4.0, 38.0
        for line in self.legend:
            text = f"{line.label} {line.value}".rstrip()
            width = 28 + _LETTER * len(text) + 20
            if x > 4 and x + width > self.size[0]:
                x, y = 4.0, y + 18
            dash = Markup(' stroke-dasharray="{}"').format(line.dash) if line.dash else ""
            parts.append(_SAMPLE.format(x, y - 4, x + 22, line.color, dash))
            parts.append(_TEXT.format("name", x + 28, y, "start", text))
            x += width
        return Markup("").join(parts), y


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, evenly spaced, the outer two at or beyond `low` and `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * index for index in range(first, last + 1)]


def whole_ticks(low: float, high: float, count: int = 7) -> list[int]:
    """Return about `count` round whole numbers within `low` and `high`: steps, epochs and ranks have no halves.

    Where no round number lies within, the whole numbers nearest to the ends.
    """
    rough = max((high - low) / max(count - 1, 1), 1.0)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * index for index in range(first, last + 1)] or sorted({math.floor(low), math.ceil(high)})


def thin(points: Points, limit: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Return the finite points, averaged over neighbors when there are more than `limit`."""
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
    x_ticks: Sequence[int] | None = None,
    note: str = "",
) -> Chart | None:
    """Draw `lines` on common axes; None when no line has a point.

    The x axis counts something (steps, epochs, ranks), so its ticks are whole numbers: `x_ticks`, or round ones.
    y_bounds: the least and greatest value the y axis must show; by default the data's own, with zero.
    """
    drawn = [(line, thin(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return None
    legend = tuple(line for line, _ in drawn if not line.faint)
    label = ", ".join([title, *(f"{line.label} {line.value}".rstrip() for line in legend)])

    def draw(size: tuple[int, int]) -> Markup:
        frame = _Frame.around([points for _, points in drawn], size=size, y_bounds=y_bounds, x_ticks=x_ticks)
        parts = [frame.axes(x_label=x_label, y_format=y_format)]
        parts += [frame.curve(line, points) for line, points in sorted(drawn, key=lambda pair: not pair[0].faint)]
        return drawing(size, label, parts)

    return Chart(
        title=title, note=note, svg=draw((WIDTH, HEIGHT)), narrow=draw(_PHONE), legend=legend, size=(WIDTH, HEIGHT)
    )


def drawing(size: tuple[float, float], label: str, parts: Sequence[Markup]) -> Markup:
    """Return an SVG element of `size` in view-box units, which screen readers call `label`."""
    whole = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>')
    return whole.format(*size, label, Markup("").join(parts))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The axes of one chart and the way from data to view-box units."""

    size: tuple[int, int]
    x_low: float
    x_high: float
    x_ticks: Sequence[int]
    y_ticks: Sequence[float]

    @classmethod
    def around(
        cls,
        curves: Sequence[Points],
        *,
        size: tuple[int, int],
        y_bounds: tuple[float, float] | None,
        x_ticks: Sequence[int] | None,
    ) -> _Frame:
        xs = [x for points in curves for x, _ in points]
        ys = [y for points in curves for _, y in points]
        low, high = y_bounds or (min(0.0, *ys), max(0.0, *ys))
        y_ticks = nice_ticks(low, high)
        if y_bounds:  # a share never needs a tick above 100 %
            y_ticks = [tick for tick in y_ticks if tick <= high * (1 + 1e-9)]
        x_low, x_high = min(xs), max(xs)
        room = (size[0] - _LEFT - _RIGHT) // _TICK_ROOM
        ticks = list(x_ticks or whole_ticks(x_low, x_high, room))
        if x_high == x_low:
            x_low, x_high = x_low - 1, x_high + 1
        return cls(size=size, x_low=x_low, x_high=x_high, x_ticks=ticks, y_ticks=y_ticks)

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (self.size[0] - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(self.size[1] - _BOTTOM - share * (self.size[1] - _TOP - _BOTTOM), 1)

    def axes(self, *, x_label: str, y_format: Callable[[float], str]) -> Markup:
        right, bottom = self.size[0] - _RIGHT, self.size[1] - _BOTTOM
        parts = []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(_LINE.format("grid", _LEFT, y, right, y))
            parts.append(_TEXT.format("tick", _LEFT - 8, y + 4, "end", y_format(tick)))
        parts.append(_LINE.format("axis", _LEFT, bottom, right, bottom))
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(_LINE.format("axis", x, bottom, x, bottom + 4))
            parts.append(_TEXT.format("tick", x, bottom + 17, "middle", f"{tick:,}"))
        parts.append(_TEXT.format("name", (_LEFT + right) / 2, self.size[1] - 4, "middle", x_label))
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
