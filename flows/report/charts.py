"""Charts as SVG, drawn by matplotlib for pages, the study and Prefect's UI. The same data give the same bytes.

Text stays text: a page sets it in its own font, and the legend is HTML beside the drawing. matplotlib is imported when
a chart is drawn.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from markupsafe import Markup

from flows.report.stage import TEMPLATES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Final = TEMPLATES / "charts.mplstyle"
INK: Final = "#1f2937"
PALETTE: Final = ("#2563eb", "#d97706", "#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d", "#b45309")
"""Colors for things without a color of their own: apart in hue, and dark enough on white."""

_FONTS: Final = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"  # of a file
_MAX_POINTS: Final = 400  # more cannot be told apart at this width
_BAR: Final = 14  # height of an interval; the dots on it spread over it, so that equal values lie beside each other
_TOP, _RIGHT, _BOTTOM = 12, 14, 44  # room around the axes in view-box units
_SVG: Final = "{http://www.w3.org/2000/svg}"
_LINK: Final = "{http://www.w3.org/1999/xlink}href"
_SETTINGS_LOCK: Final = threading.Lock()  # matplotlib's settings are global; two threads may draw at once
_BAR_ROOM: Final = 0.02  # of the width, beside the first and the last error bar
_PNG_DPI: Final = 180  # of 72 per view-box unit: sharp in print at the width of a column

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend. dash: lengths of strokes and gaps, empty for a solid line. value: text after the label."""

    label: str
    color: str
    dash: tuple[float, ...] = ()
    value: str = ""

    @property
    def text(self) -> str:
        """Return label and value in one string."""
        return f"{self.label} {self.value}".rstrip()

    @property
    def line_style(self) -> Any:
        """Return the dash in the form that matplotlib expects."""
        return (0, self.dash) if self.dash else "solid"


@dataclass(frozen=True, kw_only=True)
class Curve(Key):
    """One curve. faint: draw it thin, as background, and leave it out of the legend. dots: mark every point.

    bars: ends of the error bar of each point; empty for no bars.
    """

    points: Points
    faint: bool = False
    dots: bool = False
    bars: Points = ()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One row of an interval chart: a dot per value, a stroke at their mean, a bar over the interval of the mean."""

    label: str
    color: str
    values: Sequence[float]
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Size of a drawing and the room left of its axes, in view-box units. narrow: the drawing is for phones."""

    width: float
    height: float
    left: float
    narrow: bool = False

    def axes_of(self, figure: Figure) -> Axes:
        """Add axes to `figure`, which is higher than the frame if it has a heading."""
        width, height = figure.get_size_inches() * figure.dpi
        inner = (self.width - self.left - _RIGHT) / width, (self.height - _TOP - _BOTTOM) / height
        return figure.add_axes((self.left / width, _BOTTOM / height, *inner))


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart that is drawn in a wide and in a narrow frame. large: it needs the full width of a page."""

    title: str
    note: str
    legend: Sequence[Key]
    frames: tuple[Frame, Frame]
    draw: Callable[[Axes, Frame], None]
    large: bool = False

    @property
    def wide(self) -> Markup:
        """Return the drawing as an SVG element."""
        return Markup(ElementTree.tostring(self._element(self.frames[0]), encoding="unicode"))

    @property
    def narrow(self) -> Markup:
        """Return the drawing for narrow screens, on which the text of the wide one would be too small."""
        return Markup(ElementTree.tostring(self._element(self.frames[1]), encoding="unicode"))

    def as_file(self) -> str:
        """Return the drawing as an SVG file with its title and its legend, which in a page are HTML."""
        root = self._element(self.frames[0], heading=True)
        root.attrib |= {"xmlns": _SVG.strip("{}"), "font-family": _FONTS}
        # The white ground is for viewers that are dark.
        root.insert(0, ElementTree.Element("rect", {"width": "100%", "height": "100%", "fill": "#fff"}))
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def as_png(self) -> bytes:
        """Return the drawing of `as_file` as a PNG file."""
        stream = io.BytesIO()

        def save(figure: Figure) -> None:
            figure.savefig(stream, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})

        self._save(self.frames[0], save, heading=True)
        return stream.getvalue()

    def _element(self, frame: Frame, *, heading: bool = False) -> ElementTree.Element:
        stream = io.StringIO()
        height = self._save(frame, lambda figure: _print_svg(figure, stream), heading=heading)
        root = _cleaned(stream.getvalue())
        label = ", ".join([self.title, *(key.text for key in self.legend)])
        root.attrib |= {"viewBox": f"0 0 {frame.width:g} {height:g}", "role": "img", "aria-label": label}
        return root

    def _save(self, frame: Frame, save: Callable[[Figure], None], *, heading: bool) -> float:
        """Draw the chart, with its title and legend if `heading`, pass the figure to `save`, and return its height."""
        longest = max((len(key.text) for key in self.legend), default=0)
        columns = max(1, min(len(self.legend), int(frame.width // (48 + 7 * longest))))
        height = frame.height + (28 + 18 * math.ceil(len(self.legend) / columns) if heading else 0)

        def draw(figure: Figure) -> None:
            self.draw(frame.axes_of(figure), frame)
            if heading:
                _add_heading(figure, self.title, self.legend, columns)
            for artist in figure.findobj():
                artist.set_clip_on(False)  # the axes enclose all data, and a clip path in an SVG needs an id
            save(figure)

        # Ids come from the salt, and two drawings of one page must not share an id.
        _with_figure(draw, frame.width, height, salt=f"{self.title}, {frame.width:g}")
        return height


def _with_figure(use: Callable[[Figure], None], width: float, height: float, *, salt: str) -> None:
    """Call `use` with an empty figure, under the settings of `STYLE`. salt: of the ids in an SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = mpl.rc_params_from_file(STYLE, use_default_template=True)  # ignores the user's matplotlibrc
    settings: dict[Any, Any] = {name: value for name, value in style.items() if name != "backend"}
    with _SETTINGS_LOCK, mpl.rc_context(settings | {"svg.hashsalt": salt}):
        use(Figure(figsize=(width / 72, height / 72)))


def _print_svg(figure: Figure, stream: io.StringIO) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def _cleaned(svg: str) -> ElementTree.Element:
    """Return the drawing without namespaces, metadata, style sheet, fonts and unused ids, ready to be inlined."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [*parent]:
            child.tail = None
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text = element.text if element.tag == "text" else None
        if element.tag == "g":
            element.attrib.pop("id", None)
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        for name, value in element.attrib.items():
            element.set(name, re.sub(r"font-family: [^;]*;? ?", "", " ".join(value.split())))
    root.attrib.clear()
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # from the style sheet
    return root


def _add_heading(figure: Figure, title: str, legend: Sequence[Key], columns: int) -> None:
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches() * figure.dpi
    figure.text(4 / width, 1 - 18 / height, title, fontsize=15, fontweight="bold", color=INK)
    if legend:
        handles = [Line2D([], [], color=key.color, linestyle=key.line_style) for key in legend]
        place = (4 / width, 1 - 28 / height)
        figure.legend(handles, [key.text for key in legend], ncols=columns, loc="upper left", bbox_to_anchor=place)


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_format: Callable[[float], str],
    y_bounds: tuple[float, float] | None = None,
    x_ticks: Sequence[int] | None = None,
    note: str = "",
) -> Chart | None:
    """Return a chart of `curves` on common axes; None if they are empty.

    The x axis counts steps, epochs or ranks, so its ticks are whole numbers: `x_ticks`, or round ones by default.
    y_bounds: range that the y axis must include; by default that of the data and zero.
    """
    thinned = [curve if curve.bars else replace(curve, points=thin(curve.points)) for curve in curves]
    drawn = sorted((curve for curve in thinned if curve.points), key=lambda curve: not curve.faint)
    if not drawn:
        return None
    xs, ys = zip(*(point for curve in drawn for point in curve.points), strict=True)
    room = _BAR_ROOM * (max(xs) - min(xs)) if any(curve.bars for curve in drawn) else 0.0
    bounds = y_bounds or (min(0.0, *ys), max(0.0, *ys))

    def draw(axes: Axes, frame: Frame) -> None:
        for curve in drawn:
            _draw_curve(axes, curve)
        _scale_x(axes, min(xs) - room, max(xs) + room, x_ticks, most=5 if frame.narrow else 9)
        ticks = round_ticks(*bounds, most=5)
        axes.set_yticks(ticks, [y_format(tick) for tick in ticks])
        axes.set_ylim(ticks[0], ticks[-1])
        axes.set_xlabel(x_label)

    frames = Frame(width=560, height=270, left=58), Frame(width=330, height=250, left=58, narrow=True)
    legend = [curve for curve in drawn if not curve.faint]
    return Chart(title=title, note=note, legend=legend, frames=frames, draw=draw)


def font_file() -> Path:
    """Return the font that charts are measured and drawn with, DejaVu Sans, which matplotlib ships."""
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def thin(points: Points, limit: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Return the finite points, averaged over neighbors when there are more than `limit`."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(finite) // limit)
    if size <= 1:
        return finite
    bins = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def _draw_curve(axes: Axes, curve: Curve) -> None:
    x, y = zip(*curve.points, strict=True)
    marker = "o" if curve.dots or len(curve.points) == 1 else ""
    width = 1.1 if curve.faint else None
    axes.plot(x, y, color=curve.color, linestyle=curve.line_style, marker=marker, linewidth=width)
    if curve.bars:
        below, above = zip(*((at - low, high - at) for at, (low, high) in zip(y, curve.bars, strict=True)), strict=True)
        axes.errorbar(
            x, y, yerr=(below, above), fmt="none", ecolor=curve.color, elinewidth=1.1, capsize=3, capthick=1.1
        )


def _scale_x(axes: Axes, low: float, high: float, ticks: Sequence[int] | None, *, most: int) -> None:
    """Fit the x axis to the data, with whole numbers as ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    room = 0.5 if low == high else 0.0
    axes.set_xlim(low - room, high + room)
    whole = MaxNLocator(most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(FixedLocator([*ticks]) if ticks else whole)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def round_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return round numbers, evenly spaced, in about `most` steps, the outer two at or beyond `low` and `high`."""
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def interval_chart(
    estimates: Sequence[Estimate], *, title: str, x_label: str, keys: Sequence[Key], note: str, zero: bool = False
) -> Chart | None:
    """Return a chart with one row per estimate on a common axis; None without estimates.

    keys: entries of the legend; those whose color does not occur are left out. zero: include zero and mark it.
    """
    if not estimates:
        return None
    shown = [value for estimate in estimates for value in (*estimate.values, *(estimate.interval or ()))]
    shown += [0.0] if zero else []

    def draw(axes: Axes, frame: Frame) -> None:
        _scale_intervals(axes, round_ticks(min(shown), max(shown), most=4 if frame.narrow else 6), len(estimates))
        axes.set_xlabel(x_label)
        if zero:
            axes.axvline(0, color="#566073", linewidth=1)
        bar = _BAR / _row_height(narrow=frame.narrow)
        for number, estimate in enumerate(estimates):
            _draw_estimate(axes, estimate, number + (1 - bar if frame.narrow else 0.5), bar)
        _label_estimates(axes, [estimate.label for estimate in estimates], above=frame.narrow)

    wide, narrow = (_TOP + len(estimates) * _row_height(narrow=narrow) + _BOTTOM for narrow in (False, True))
    used = {estimate.color for estimate in estimates}
    return Chart(
        title=title,
        note=note,
        legend=[key for key in keys if key.color in used],
        frames=(Frame(width=760, height=wide, left=300), Frame(width=330, height=narrow, left=14, narrow=True)),
        draw=draw,
        large=True,
    )


def _row_height(*, narrow: bool) -> int:
    return 42 if narrow else 26


def _scale_intervals(axes: Axes, ticks: Sequence[float], rows: int) -> None:
    axes.set_xticks(ticks, [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    axes.set_xlim(ticks[0], ticks[-1])
    axes.set_ylim(rows, 0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)


def _draw_estimate(axes: Axes, estimate: Estimate, middle: float, bar: float) -> None:
    """Draw one estimate around `middle`. bar: height of the bar, over which the values spread; both in rows."""
    color, unit = estimate.color, bar / _BAR
    if estimate.interval is not None:
        low, high = estimate.interval
        axes.barh(middle, high - low, bar, low, facecolor=(color, 0.22), edgecolor=color, linewidth=1)
    reach = bar / 2 + 2 * unit
    axes.vlines(estimate.mean, middle - reach, middle + reach, color=INK, linewidth=2.4)
    last = len(estimate.values) - 1
    spread = bar / 2 - 3 * unit
    heights = [middle + (spread * (2 * at / last - 1) if last else 0) for at in range(last + 1)]
    dots = axes.plot(estimate.values, heights, color=color, linestyle="", marker="o", markersize=7.4)
    dots[0].set(markeredgecolor="white", markeredgewidth=1)


def _label_estimates(axes: Axes, labels: Sequence[str], *, above: bool) -> None:
    """Write the label of each row left of the axes, or above its bar."""
    if not above:
        axes.set_yticks([number + 0.5 for number in range(len(labels))], labels)
        axes.tick_params(axis="y", labelsize=12, labelcolor=INK)
        return
    axes.set_yticks([])
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # keeps lines of the grid off the label
    for number, label in enumerate(labels):
        axes.annotate(label, (0, number + 0.36), xycoords=("figure fraction", "data"), color=INK, bbox=ground)
