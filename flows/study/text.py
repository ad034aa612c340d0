"""The tables of a study as text: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from flows.report.scores import signed
from flows.study.table import METRICS, Difference, Line, Row, SeedMean, unfinished

_LABELS = tuple(label for _, label in METRICS)


def mean_text(part: SeedMean | None, digits: int = 1) -> str:
    """Return "67.7 ± 1.2", or the number alone without a deviation."""
    if part is None:
        return "–"
    text = f"{part.mean:.{digits}f}"
    return text if part.deviation is None else f"{text} ± {part.deviation:.{digits}f}"


def difference_text(part: SeedMean) -> str:
    """Return "+2.1 (+0.4 to +3.8)", or the difference alone without an interval."""
    if part.low is None or part.high is None:
        return signed(part.mean)
    return f"{signed(part.mean)} ({signed(part.low)} to {signed(part.high)})"


def verdict(part: SeedMean) -> str:
    """Say on which side of zero an interval lies."""
    if part.low is None or part.high is None:
        return "one seed cannot say"
    return "more" if part.low > 0 else "less" if part.high < 0 else "not shown"


def markdown(lines: Sequence[Line], answers: Sequence[Difference], rows: Sequence[Row]) -> str:
    """Return the table of means, the table of differences, and what has no result."""
    parts = ["Percent, mean ± standard deviation over seeds.", _means(lines)]
    if answers:
        parts += ["Differences paired by seed, in points: mean (95 % t-interval).", _differences(answers)]
    missing = [f"- {row['title']}, seed {row['seed']}: {row['status']}, {row['error']}" for row in unfinished(rows)]
    if missing:
        parts += ["Without a result:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def _means(lines: Sequence[Line]) -> str:
    body = []
    for line in lines:
        scores = [mean_text(line.metrics[key]) for key, _ in METRICS]
        body.append([line.title, line.mode, *scores, mean_text(line.seconds, 0), str(line.seeds)])
    return _table(["variant", "mode", *_LABELS, "training, s", "seeds"], body)


def _differences(answers: Sequence[Difference]) -> str:
    body = []
    for answer in answers:
        points = [difference_text(answer.metrics[key]) for key, _ in METRICS]
        sides = f"{answer.left} − {answer.right}"
        body.append([answer.comparison.question, sides, *points, f"{answer.better} of {answer.seeds}"])
    return _table(["question", "difference", *_LABELS, "mAP above zero"], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def means_csv(lines: Sequence[Line]) -> str:
    """Return the table of means: a row a variant and mode, every spread in four columns."""
    rows = []
    for line in lines:
        row: dict[str, Any] = {name: getattr(line, name) for name in ("variant", "title", "group", "mode", "seeds")}
        row |= _spreads(line.metrics)
        rows.append(row | {"seconds_mean": line.seconds.mean if line.seconds else None})
    return _csv(rows)


def differences_csv(answers: Sequence[Difference]) -> str:
    """Return the table of differences: a row a comparison, sides as variant:mode."""
    rows = []
    for answer in answers:
        sides = {name: ":".join(getattr(answer.comparison, name)) for name in ("left", "right")}
        row: dict[str, Any] = {"question": answer.comparison.question, **sides}
        rows.append(row | {"seeds": answer.seeds, "better": answer.better} | _spreads(answer.metrics))
    return _csv(rows)


def _spreads(metrics: Mapping[str, SeedMean]) -> dict[str, float | None]:
    names = ("mean", "deviation", "low", "high")
    return {f"{key}_{name}": getattr(part, name) for key, part in metrics.items() for name in names}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
