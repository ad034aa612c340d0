"""Tables of a study as text: Markdown for people, CSV for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flows.report.scores import signed
from flows.study.rows import RunRow, unfinished, without_cameras
from flows.study.table import COLUMNS, Difference, SeedMean, VariantScores
from reid.evaluation.intervals import verdict
from reid.evaluation.protocol import NO_CAMERAS

_LABELS: Final = tuple(label for _, label in COLUMNS)
_VERDICTS: Final = {"up": "more", "down": "less", "even": "not shown"}


def mean_text(part: SeedMean | None, digits: int = 1) -> str:
    """Return "67.7 ± 1.2", the number alone without a deviation, or a dash for None."""
    if part is None:
        return "–"
    text = f"{part.mean:.{digits}f}"
    return text if part.deviation is None else f"{text} ± {part.deviation:.{digits}f}"


def difference_text(part: SeedMean) -> str:
    """Return "+2.1 (+0.4 to +3.8)", or the difference alone without an interval."""
    if part.interval is None:
        return signed(part.mean)
    low, high = part.interval
    return f"{signed(part.mean)} ({signed(low)} to {signed(high)})"


def verdict_text(part: SeedMean) -> str:
    """Return "more" or "less" where the interval excludes zero, else "not shown"."""
    return "needs two seeds" if part.interval is None else _VERDICTS[verdict(part.interval)]


def markdown(variants: Sequence[VariantScores], answers: Sequence[Difference], rows: Sequence[RunRow]) -> str:
    """Return the table of means, the table of differences, and the runs without a result."""
    note = f" {NO_CAMERAS.capitalize()}." if without_cameras(rows) else ""
    parts = [f"Percent, mean ± standard deviation over seeds.{note}", _means_table(variants)]
    if answers:
        parts += [f"Differences paired by seed, in points: mean (95 % t-interval).{note}", _differences_table(answers)]
    missing = [f"- {row.title}, seed {row.seed}: {row.status}, {row.error}" for row in unfinished(rows)]
    if missing:
        parts += ["Without a result:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _means_table(variants: Sequence[VariantScores]) -> str:
    body = []
    for each in variants:
        scores = [mean_text(each.metrics[key]) for key, _ in COLUMNS]
        body.append([each.title, each.mode, *scores, mean_text(each.seconds, 0), str(each.seeds)])
    return _markdown_table(["variant", "mode", *_LABELS, "training, s", "seeds"], body)


def _differences_table(answers: Sequence[Difference]) -> str:
    body = []
    for answer in answers:
        points = [difference_text(answer.metrics[key]) for key, _ in COLUMNS]
        sides = f"{answer.left} − {answer.right}"
        body.append([answer.comparison.question, sides, *points, f"{answer.better} of {answer.seeds}"])
    return _markdown_table(["question", "difference", *_LABELS, "mAP above zero"], body)


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def means_csv(variants: Sequence[VariantScores], rows: Sequence[RunRow]) -> str:
    """Return the table of means: one row per variant and mode, four columns per metric."""
    lines = [
        {name: getattr(each, name) for name in ("variant", "title", "group", "mode", "seeds")}
        | _columns(each.metrics)
        | {"seconds_mean": each.seconds.mean if each.seconds else None}
        | _cameras(rows)
        for each in variants
    ]
    return _csv(lines)


def differences_csv(answers: Sequence[Difference], rows: Sequence[RunRow]) -> str:
    """Return the table of differences: one row per comparison, its sides as variant:mode."""
    lines = [
        {"question": answer.comparison.question}
        | {name: ":".join(getattr(answer.comparison, name)) for name in ("left", "right")}
        | {"seeds": answer.seeds, "better": answer.better}
        | _columns(answer.metrics)
        | _cameras(rows)
        for answer in answers
    ]
    return _csv(lines)


def _cameras(rows: Sequence[RunRow]) -> dict[str, Any]:
    """Return a column that is only there in a dataset without cameras."""
    return {"cameras": "unknown"} if without_cameras(rows) else {}


def _columns(metrics: Mapping[str, SeedMean]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, part in metrics.items():
        low, high = part.interval or (None, None)
        found |= {f"{key}_mean": part.mean, f"{key}_deviation": part.deviation, f"{key}_low": low, f"{key}_high": high}
    return found


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    import pandas as pd

    return str(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
