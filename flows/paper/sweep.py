"""The sweeps over K and over depth: mAP and R1 of each inference mode with error bars, as charts and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.errors import counted
from data.files import atomic_path, write_text
from flows.report.charts import PALETTE, Chart, Curve, line_chart
from flows.report.scores import METRICS
from flows.study.plan import FUSED, IMAGE, Group
from flows.study.rows import RunRow, finished, without_cameras
from flows.study.statistics.means import SeedMean, seed_mean
from reid.evaluation.protocol import NO_CAMERAS

SWEEPS: Final[Mapping[Group, tuple[str, str]]] = {
    "queries": ("CLIP-SCGI over K", "K, learnable queries of CGI"),
    "depth": ("CLIP-SCGI over depth", "depth, cross-attention blocks of CGI"),
}
"""Group of the study -> title and horizontal axis of its chart."""
TABLE: Final = "sweep.csv"
_SHOWN: Final = tuple((key, name) for key, name in METRICS if key in ("mAP", "rank1"))
_COLORS: Final = {IMAGE: PALETTE[0], FUSED: PALETTE[1]}
_DASHES: Final[Mapping[str, tuple[float, ...]]] = {"mAP": (), "rank1": (5, 3)}
_STEP: Final = 0.06  # between the curves, so that the error bars of one value lie beside each other


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One value of a swept setting in one inference mode. metrics: percent over seeds."""

    sweep: Group
    value: int
    mode: str
    seeds: int
    metrics: Mapping[str, SeedMean]


def sweep_points(rows: Sequence[RunRow]) -> list[SweepPoint]:
    """Return the points of all sweeps that have a result, by sweep, mode and value."""
    found: dict[tuple[Group, str, int], list[RunRow]] = {}
    for row in finished(rows):
        for sweep in SWEEPS:
            value = row.inversion_tokens if sweep == "queries" else row.depth
            if row.group == sweep and row.mode and value is not None:
                found.setdefault((sweep, row.mode, value), []).append(row)
    order = {sweep: at for at, sweep in enumerate(SWEEPS)}
    return [
        SweepPoint(
            sweep=sweep,
            value=value,
            mode=mode,
            seeds=len(part),
            metrics={key: seed_mean([100 * row.scores[key] for row in part]) for key, _ in _SHOWN},
        )
        for (sweep, mode, value), part in sorted(
            found.items(), key=lambda item: (order[item[0][0]], item[0][1] != IMAGE, item[0][2])
        )
    ]


def sweep_chart(sweep: Group, points: Sequence[SweepPoint]) -> Chart | None:
    """Return the chart of one sweep, a curve per mode and metric; None without points."""
    own = [point for point in points if point.sweep == sweep]
    modes = list(dict.fromkeys(point.mode for point in own))
    lines = [(key, name, [point for point in own if point.mode == mode]) for mode in modes for key, name in _SHOWN]
    curves = [_curve(*line, shift=_STEP * (at - (len(lines) - 1) / 2)) for at, line in enumerate(lines)]
    ends = [end for point in own for part in point.metrics.values() for end in _ends(part)]
    title, x_label = SWEEPS[sweep]
    return line_chart(
        curves,
        title=f"{title}, {_spread(own)}",
        x_label=x_label,
        y_format=lambda value: f"{value:g} %",
        y_bounds=(min(ends, default=0.0), max(ends, default=1.0)),
        x_ticks=sorted({point.value for point in own}),
    )


def _ends(part: SeedMean) -> tuple[float, float]:
    """Return one standard deviation below and above the mean, cut at 0 and 100."""
    reach = part.deviation or 0.0
    return max(0.0, part.mean - reach), min(100.0, part.mean + reach)


def _spread(points: Sequence[SweepPoint]) -> str:
    """Return what the error bars are, which a figure has to say wherever it is used."""
    counts = sorted({point.seeds for point in points})
    if not counts or counts[-1] == 1:
        return "1 seed"
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    return f"mean ± standard deviation of {few}{counted(counts[-1], 'seed')}"


def _curve(key: str, name: str, points: Sequence[SweepPoint], *, shift: float) -> Curve:
    mode = points[0].mode
    return Curve(
        label=f"{name}, {mode}",
        color=_COLORS.get(mode, PALETTE[2]),
        dash=_DASHES[key],
        points=[(point.value + shift, point.metrics[key].mean) for point in points],
        bars=[_ends(point.metrics[key]) for point in points] if any(point.seeds > 1 for point in points) else (),
        dots=True,
    )


def sweep_note(rows: Sequence[RunRow]) -> str:
    """Return a sentence about the dataset and the protocol of the figures."""
    datasets = ", ".join(sorted({row.dataset for row in finished(rows) if row.dataset}))
    cameras = f"; {NO_CAMERAS}" if without_cameras(rows) else ""
    return f"percent on {datasets}{cameras}"


def write_sweep(folder: Path, rows: Sequence[RunRow]) -> list[Path]:
    """Write sweep.csv and, for each sweep with a result, its chart as SVG and PNG; return the paths of the files."""
    points = sweep_points(rows)
    written = [folder / TABLE]
    write_text(written[0], _csv(points))
    for sweep in SWEEPS:
        chart = sweep_chart(sweep, points)
        if chart is not None:
            svg, png = (folder / f"{sweep}.{suffix}" for suffix in ("svg", "png"))
            write_text(svg, chart.as_file())
            with atomic_path(png) as temporary:
                temporary.write_bytes(chart.as_png())
            written += [svg, png]
    return written


def _csv(points: Sequence[SweepPoint]) -> str:
    import pandas as pd

    rows = [
        {name: getattr(point, name) for name in ("sweep", "value", "mode", "seeds")}
        | {f"{key}_{part}": getattr(point.metrics[key], part) for key, _ in _SHOWN for part in ("mean", "deviation")}
        for point in points
    ]
    return str(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
