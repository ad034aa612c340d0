"""The curves of the report: losses and learning rates over steps, accuracy over epochs, CMC over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flows.report.charts import INK, PALETTE, Chart, Curve, Points, line_chart

_MODEL_COLORS: Final = {"untrained": "#8a94a6", "trained": "#2563eb"}
_MODE_DASHES: Final[Mapping[str, tuple[float, ...]]] = {"image": (), "fused": (7, 4)}
_CMC_TICKS: Final = (1, 5, 10, 15, 20, 30, 40, 50)
_MANY: Final = 30  # points of a curve from which on dots are left out

Row = Mapping[str, Any]
"""One line of metrics.jsonl, or one result of metrics.json."""


def training_charts(log: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Return the charts of a training log, without empty ones. log: kind of line in metrics.jsonl -> rows."""
    steps, epochs = log["step"], log["epoch"]
    charts = (_total(steps, epochs), _terms(steps, epochs), _rates(steps), _accuracy(log["eval"]))
    return [chart for chart in charts if chart is not None]


def _total(steps: Sequence[Row], epochs: Sequence[Row]) -> Chart | None:
    single = [(row["step"], row["loss"]) for row in steps]
    means = [(middle, row["loss"]) for middle, row in _at_middles(epochs)]
    curves = [
        Curve(label="step", points=single, color="#93b4f5" if means else INK, faint=bool(means)),
        Curve(label="epoch mean", points=means, color=INK, value=_last(means), dots=len(means) < _MANY),
    ]
    note = "Thin line: single steps. Thick line: mean of each epoch, at its middle." if means else ""
    return line_chart(curves, title="Total loss", x_label="step", y_format=_plain, note=note)


def _terms(steps: Sequence[Row], epochs: Sequence[Row]) -> Chart | None:
    rows = _at_middles(epochs) or [(row["step"], row) for row in steps]
    curves = [
        Curve(label=name, points=points, color=_color(number), value=_last(points), dots=len(points) < _MANY)
        for number, (name, points) in enumerate(_series(rows, "terms").items())
    ]
    note = "Mean of each epoch, at its middle." if epochs else ""
    return line_chart(curves, title="Loss terms", x_label="step", y_format=_plain, note=note)


def _at_middles(epochs: Sequence[Row]) -> list[tuple[float, Row]]:
    """Return each epoch with its middle step. Drawn at the end of the epoch, its mean would lag behind the steps."""
    ends = [row["step"] for row in epochs]
    return [((before + row["step"]) / 2, row) for before, row in zip([0, *ends], epochs, strict=False)]


def _rates(steps: Sequence[Row]) -> Chart | None:
    curves = []
    for number, (group, points) in enumerate(_series([(row["step"], row) for row in steps], "lr").items()):
        peak = f"peak {_scientific(max(rate for _, rate in points))}"
        curves.append(Curve(label=group, points=points, color=_color(number), dash=_dash(number), value=peak))
    return line_chart(curves, title="Learning rates", x_label="step", y_format=_scientific)


def _series(rows: Sequence[tuple[float, Row]], field: str) -> dict[str, list[tuple[float, float]]]:
    """Return name -> points (x, value) of a field that maps names to values, such as loss terms."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x, row in rows:
        for name, value in row[field].items():
            found.setdefault(name, []).append((x, value))
    return found


def _accuracy(evaluations: Sequence[Row]) -> Chart | None:
    curves = []
    for number, (key, label) in enumerate((("mAP", "mAP"), ("rank1", "R1"))):
        points = [(row["epoch"], row[key]) for row in evaluations if key in row]
        last = f"{100 * points[-1][1]:.1f} %" if points else ""
        curves.append(Curve(label=label, points=points, color=_color(number), value=last, dots=True))
    title, bounds = "Accuracy during training", _share_bounds(curves)
    return line_chart(curves, title=title, x_label="epoch", y_format=_percent, y_bounds=bounds)


def cmc_chart(results: Sequence[Row], ranks: int) -> Chart | None:
    """Return the CMC curves of all rows of metrics.json, up to rank `ranks`."""
    curves = [
        Curve(
            label=f"{row['model']}, {row['mode']}",
            points=[*enumerate(row["cmc"][:ranks], start=1)],
            color=_MODEL_COLORS.get(row["model"], INK),
            dash=_MODE_DASHES.get(row["mode"], (2, 3)),
            value=f"R1 {100 * row['rank1']:.1f} %",
            dots=row["mode"] == "image",
        )
        for row in results
    ]
    last = max((len(curve.points) for curve in curves), default=0)
    return line_chart(
        curves,
        title="Cumulative matching characteristic",
        x_label="rank",
        y_format=_percent,
        y_bounds=_share_bounds(curves),
        x_ticks=[rank for rank in _CMC_TICKS if rank <= last] if last >= 5 else None,
        note="Share of queries with a right match among the first k gallery images.",
    )


def _share_bounds(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return 0 and 1, or 0.5 and 1 where no curve is below one half."""
    lowest = min((y for curve in curves for _, y in curve.points), default=0.0)
    return (0.0 if lowest < 0.5 else 0.5, 1.0)


def _color(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _dash(number: int) -> tuple[float, ...]:
    # Two groups often have the same rate; a dashed line over a solid one shows both.
    return () if number == 0 else ((7, 4), (2, 4), (10, 3, 2, 3))[(number - 1) % 3]


def _last(points: Points) -> str:
    return f"{points[-1][1]:.3g}" if points else ""


def _plain(value: float) -> str:
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
