"""The curves of the report: losses and learning rates over steps, accuracy over epochs, CMC over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flows.report.charts import Chart, Line, line_chart

INK: Final = "#1f2937"
PALETTE: Final = ("#2563eb", "#d97706", "#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d", "#b45309")
"""Colours for things without a colour of their own: apart in hue, and dark enough on white."""
_MODEL_COLORS: Final = {"untrained": "#8a94a6", "trained": "#2563eb"}
_MODE_DASHES: Final = {"image": "", "fused": "7 4"}

Row = Mapping[str, Any]


def training_charts(log: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """Return the charts of one training log (the kinds of metrics.jsonl), without the empty ones."""
    steps, epochs = log["step"], log["epoch"]
    charts = (_total(steps, epochs), _terms(steps, epochs), _rates(steps), _accuracy(log["eval"]))
    return [chart for chart in charts if chart is not None]


def _total(steps: Sequence[Row], epochs: Sequence[Row]) -> Chart | None:
    single = [(row["step"], row["loss"]) for row in steps]
    means = [(middle, row["loss"]) for middle, row in _middles(epochs)]
    lines = [
        Line(label="step", points=single, color="#93b4f5" if means else INK, faint=bool(means)),
        Line(label="epoch mean", points=means, color=INK, value=_last(means), dots=len(means) < 30),
    ]
    note = "Thin line: single steps. Thick line: mean of each epoch, at its middle." if means else ""
    return line_chart(lines, title="Total loss", x_label="step", y_format=_plain, note=note)


def _terms(steps: Sequence[Row], epochs: Sequence[Row]) -> Chart | None:
    rows = _middles(epochs) or [(row["step"], row) for row in steps]
    names = _names([row for _, row in rows], "terms")
    lines = []
    for name, color in zip(names, _colors(len(names)), strict=True):
        points = [(step, row["terms"][name]) for step, row in rows if name in row["terms"]]
        lines.append(Line(label=name, points=points, color=color, value=_last(points), dots=len(points) < 30))
    note = "Mean of each epoch, at its middle." if epochs else ""
    return line_chart(lines, title="Loss terms", x_label="step", y_format=_plain, note=note)


def _middles(epochs: Sequence[Row]) -> list[tuple[float, Row]]:
    # A mean drawn at the end of its epoch would lag behind the steps it is the mean of.
    ends = [row["step"] for row in epochs]
    return [((before + row["step"]) / 2, row) for before, row in zip([0, *ends], epochs, strict=False)]


def _last(points: Sequence[tuple[float, float]]) -> str:
    return f"{points[-1][1]:.3g}" if points else ""


def _rates(steps: Sequence[Row]) -> Chart | None:
    groups = _names(steps, "lr")
    lines = []
    for group, color, dash in zip(groups, _colors(len(groups)), _dashes(len(groups)), strict=True):
        points = [(row["step"], row["lr"][group]) for row in steps if group in row["lr"]]
        peak = max(rate for _, rate in points)
        lines.append(Line(label=group, points=points, color=color, dash=dash, value=f"peak {_scientific(peak)}"))
    return line_chart(lines, title="Learning rates", x_label="step", y_format=_scientific)


def _accuracy(evals: Sequence[Row]) -> Chart | None:
    lines = []
    for (key, label), color in zip((("mAP", "mAP"), ("rank1", "R1")), PALETTE, strict=False):
        points = [(row["epoch"], row[key]) for row in evals if key in row]
        last = f"{100 * points[-1][1]:.1f} %" if points else ""
        lines.append(Line(label=label, points=points, color=color, value=last, dots=True))
    return line_chart(
        lines, title="Accuracy during training", x_label="epoch", y_format=_percent, y_bounds=_share_bounds(lines)
    )


def cmc_chart(results: Sequence[Row], ranks: int) -> Chart | None:
    """Return the CMC curves of all rows of metrics.json, up to rank `ranks`."""
    lines = []
    for row in results:
        points = [(rank, value) for rank, value in enumerate(row["cmc"][:ranks], start=1)]
        lines.append(
            Line(
                label=f"{row['model']}, {row['mode']}",
                points=points,
                color=_MODEL_COLORS.get(row["model"], INK),
                dash=_MODE_DASHES.get(row["mode"], "2 3"),
                value=f"R1 {100 * row['rank1']:.1f} %",
                dots=row["mode"] == "image",
            )
        )
    last = max((len(line.points) for line in lines), default=0)
    ticks = [rank for rank in (1, 5, 10, 15, 20, 30, 40, 50) if rank <= last] if last >= 5 else None
    return line_chart(
        lines,
        title="Cumulative matching characteristic",
        x_label="rank",
        y_format=_percent,
        y_bounds=_share_bounds(lines),
        x_ticks=ticks,
        note="Share of queries with a right match among the first k gallery images.",
    )


def _share_bounds(lines: Sequence[Line]) -> tuple[float, float]:
    values = [y for line in lines for _, y in line.points]
    return (0.0 if min(values, default=0.0) < 0.5 else 0.5, 1.0)


def _names(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row[field]))


def _colors(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _dashes(count: int) -> list[str]:
    # Two groups often share one rate: a dashed line over a solid one shows both.
    return ["" if index == 0 else ("7 4", "2 4", "10 3 2 3")[(index - 1) % 3] for index in range(count)]


def _plain(value: float) -> str:
    return f"{value:g}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
