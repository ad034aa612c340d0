"""The ablation table: baseline, CGI only, CFF only and both, over seeds, with the published figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.errors import counted
from data.files import write_text
from flows.paper.published import BACKBONE, DATASETS, PUBLISHED, Published
from flows.recipes import Recipe
from flows.report.page import page_environment
from flows.report.scores import METRICS
from flows.study.plan import FUSED, IMAGE, Comparison
from flows.study.results.text import difference_text, mean_text
from flows.study.rows import RunRow, finished, unfinished, without_cameras
from flows.study.statistics.means import SeedMean
from flows.study.statistics.scores import differences, variant_scores
from reid.evaluation.protocol import NO_CAMERAS

VARIANTS: Final[Mapping[str, str]] = {
    "baseline": "Baseline",
    "cgi": "+ CGI",
    "cff": "+ CFF",
    "scgi": "+ CGI + CFF (CLIP-SCGI)",
}
"""Variants of the study in the order of the table, with their names in it."""
SHOWN: Final = tuple((key, name) for key, name in METRICS if key in ("mAP", "rank1"))
"""Metrics of the table, with their names."""
PAGE, MARKDOWN, TABLE = "ablation.html", "ablation.md", "ablation.csv"


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """A variant in one inference mode.

    metrics: percent over seeds. gain: mAP minus that of the baseline, paired by seed, in points; None for the baseline
    and where no seed has both. published: dataset -> figures of the variant, whose inference mode is unknown. is_first:
    whether the rows before are of other variants. evaluations: fingerprints, by seed.
    """

    variant: str
    title: str
    mode: str
    seeds: int
    metrics: Mapping[str, SeedMean]
    gain: SeedMean | None
    published: Mapping[str, Published]
    is_first: bool
    evaluations: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The table. notes: sentences that belong under it. missing: runs without a result, in words."""

    rows: Sequence[AblationRow]
    notes: Sequence[str]
    missing: Sequence[str]


def ablation(rows: Sequence[RunRow], recipe: Recipe) -> Ablation:
    """Return the table of the runs of `VARIANTS` among `rows`, which are of `recipe`."""
    own = [row for row in rows if row.variant in VARIANTS]
    missing = [f"{VARIANTS[row.variant]}, seed {row.seed}: {row.status}, {row.error}" for row in unfinished(own)]
    return Ablation(rows=_rows(own), notes=_notes(own, recipe), missing=missing)


def _rows(rows: Sequence[RunRow]) -> list[AblationRow]:
    scores = {(each.variant, each.mode): each for each in variant_scores(rows)}
    gains = {answer.comparison.left: answer.metrics["mAP"].seeds for answer in differences(rows, _over_baseline())}
    keys = [(name, mode) for name in VARIANTS for mode in (IMAGE, FUSED) if (name, mode) in scores]
    return [
        AblationRow(
            variant=name,
            title=VARIANTS[name],
            mode=mode,
            seeds=scores[name, mode].seeds,
            metrics={key: scores[name, mode].metrics[key] for key, _ in SHOWN},
            gain=gains.get((name, mode)),
            published=PUBLISHED[name],
            is_first=all(other != name for other, _ in keys[:at]),
            evaluations=[fingerprint for _, fingerprint in sorted(evaluations_of(rows, name).items())],
        )
        for at, (name, mode) in enumerate(keys)
    ]


def evaluations_of(rows: Sequence[RunRow], variant: str) -> dict[int, str]:
    """Return seed -> fingerprint of the evaluation of `variant`."""
    return {row.seed: row.evaluation for row in finished(rows) if row.variant == variant and row.evaluation}


def _over_baseline() -> list[Comparison]:
    """Return the comparisons of every variant and mode with the baseline, which has one mode."""
    sides = [(name, mode) for name in VARIANTS if name != "baseline" for mode in (IMAGE, FUSED)]
    return [Comparison(question="", left=side, right=("baseline", IMAGE)) for side in sides]


def _notes(rows: Sequence[RunRow], recipe: Recipe) -> list[str]:
    """Return what the figures are and why the published ones cannot be read as a target for them."""
    done = finished(rows)
    seeds = len({row.seed for row in done})
    over = "one seed" if seeds == 1 else f"mean ± standard deviation over {counted(seeds, 'seed')}"
    notes = [
        f"Percent, {over}. Gain: mAP minus that of the baseline, in points, paired by seed (95 % t-interval).",
        _setting(done, recipe),
        "The paper does not say which inference mode its figures use, so each stands in the first row of its variant.",
    ]
    return [*notes, *([f"{NO_CAMERAS.capitalize()}."] if without_cameras(rows) else [])]


def _setting(rows: Sequence[RunRow], recipe: Recipe) -> str:
    """Return a sentence about the model and the dataset of these runs and of the published figures."""
    backbone, names = recipe.train.backbone.name, " and ".join(DATASETS.values())
    datasets = sorted({row.dataset for row in rows if row.dataset}) or [recipe.data.label]
    here = f"{backbone} on {', '.join(datasets)}"
    if backbone == BACKBONE and set(datasets) <= DATASETS.keys():
        return f"Published: {BACKBONE} on {names}, without a spread over seeds. These runs: {here}."
    return (
        f"Published: {BACKBONE} on {names}, without a spread over seeds: another model or dataset than in these runs "
        f"({here}), so only the order of the rows can be compared."
    )


def write_ablation(folder: Path, table: Ablation) -> None:
    """Write the table as Markdown, CSV and HTML."""
    write_text(folder / MARKDOWN, markdown(table))
    write_text(folder / TABLE, _csv(table))
    write_text(folder / PAGE, _page(table))


def markdown(table: Ablation) -> str:
    """Return the table with its notes."""
    head = ["variant", "mode", *(name for _, name in SHOWN), "gain", "seeds"]
    head += [f"published: {name}, mAP / R1" for name in DATASETS.values()]
    lines = [head, ["---"] * len(head), *(_cells(row) for row in table.rows)]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    parts = [body, *table.notes]
    if table.missing:
        parts += ["Without a result:", "\n".join(f"- {text}" for text in table.missing)]
    return "\n\n".join(parts) + "\n"


def _cells(row: AblationRow) -> list[str]:
    own = [row.title if row.is_first else "", row.mode, *(mean_text(row.metrics[key]) for key, _ in SHOWN)]
    gain = difference_text(row.gain) if row.gain else "–"
    return [*own, gain, str(row.seeds), *(_published(row, dataset) for dataset in DATASETS)]


def _published(row: AblationRow, dataset: str) -> str:
    figures = row.published[dataset]
    return f"{figures.mean_ap:.1f} / {figures.rank1:.1f}" if row.is_first else ""


def _csv(table: Ablation) -> str:
    import pandas as pd

    return str(pd.DataFrame([_columns(row) for row in table.rows]).to_csv(index=False, lineterminator="\n"))


def _columns(row: AblationRow) -> dict[str, Any]:
    """Return the row for programs. The published figures of a variant are in all its rows."""
    found: dict[str, Any] = {"variant": row.variant, "title": row.title, "mode": row.mode, "seeds": row.seeds}
    for key, _ in SHOWN:
        found |= {f"{key}_mean": row.metrics[key].mean, f"{key}_deviation": row.metrics[key].deviation}
    low, high = (row.gain.interval or (None, None)) if row.gain else (None, None)
    found |= {"gain_mean": row.gain.mean if row.gain else None, "gain_low": low, "gain_high": high}
    for dataset, figures in row.published.items():
        found |= {f"published_{dataset}_mAP": figures.mean_ap, f"published_{dataset}_rank1": figures.rank1}
    return found | {"evaluations": " ".join(row.evaluations)}


def _page(table: Ablation) -> str:
    environment = page_environment()
    environment.filters.update(mean=mean_text, difference=difference_text)
    return environment.get_template("paper/ablation.html.j2").render(table=table, metrics=SHOWN, datasets=DATASETS)
