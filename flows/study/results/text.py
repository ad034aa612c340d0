"""Tables of a study as text: Markdown for people, CSV for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from flows.report.scores import signed
from flows.study.results.world import BOOTSTRAP, GROUP_TITLES, VERDICT, VISIBLE, WorldResult
from flows.study.rows import without_cameras
from flows.study.statistics.means import SeedMean
from flows.study.statistics.scores import COLUMNS, Difference, Effect, VariantScores
from reid.evaluation.intervals import Interval, verdict

_VERDICTS: Final = {"up": "more", "down": "less", "even": "not shown"}
_NOTHING: Final = "–"
Columns = Sequence[tuple[str, str]]


def mean_text(part: SeedMean | None, digits: int = 1) -> str:
    """Return "67.7 ± 1.2", the number alone without a deviation, or a dash for None."""
    if part is None:
        return _NOTHING
    text = f"{part.mean:.{digits}f}"
    return text if part.deviation is None else f"{text} ± {part.deviation:.{digits}f}"


def difference_text(part: SeedMean) -> str:
    """Return "+2.1 (+0.4 to +3.8)", or the difference alone without an interval."""
    return signed(part.mean) if part.interval is None else f"{signed(part.mean)} ({interval_text(part.interval)})"


def interval_text(interval: Interval | None) -> str:
    """Return "+0.4 to +3.8", or a dash for None."""
    return _NOTHING if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def visible_text(effect: Effect) -> str:
    """Return "visible 2.4", or an empty text with one seed."""
    return "" if effect.visible is None else f"visible {effect.visible:.1f}"


def p_text(value: float | None) -> str:
    """Return a p value with three digits, or a dash for None."""
    return _NOTHING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def verdict_text(part: SeedMean) -> str:
    """Return "more" or "less" where the interval excludes zero, else "not shown"."""
    return "needs two seeds" if part.interval is None else _VERDICTS[verdict(part.interval)]


def shown_columns(result: WorldResult) -> Columns:
    """Return the metrics that a variant of this world has, with their names."""
    return [(key, label) for key, label in COLUMNS if any(key in each.metrics for each in result.variants)]


def markdown(results: Sequence[WorldResult]) -> str:
    """Return, for every world, the tables of its groups and the runs without a result."""
    return "\n\n".join(part for result in results for part in _parts(result)) + "\n"


def _parts(result: WorldResult) -> Iterator[str]:
    yield f"## {result.name}"
    notes = [result.camera_note, result.sentences]
    yield " ".join(note for note in ["Percent, mean ± standard deviation over seeds.", *notes] if note)
    if result.answers:
        head = "Differences are paired by seed, in points: mean (95 % t-interval)."
        yield " ".join([head, VERDICT, BOOTSTRAP, VISIBLE, result.multiplicity])
    columns = shown_columns(result)
    for group in result.groups:
        yield f"### {result.name}: {GROUP_TITLES[group]}"
        yield _means_table(result.variants_in(group), columns)
        if result.oracle:
            yield result.oracle
        answers = result.answers_in(group)
        if answers:
            yield _differences_table(answers, columns)
    missing = [f"- {row.title}, seed {row.seed}: {row.status}, {row.error}" for row in result.unfinished]
    if missing:
        yield f"Without a result ({result.name}):"
        yield "\n".join(missing)


def _means_table(variants: Sequence[VariantScores], columns: Columns) -> str:
    body = []
    for each in variants:
        scores = [mean_text(each.metrics.get(key)) for key, _ in columns]
        body.append([each.title, each.mode, *scores, mean_text(each.seconds, 0), str(each.seeds)])
    return _markdown_table(["variant", "mode", *(label for _, label in columns), "training, s", "seeds"], body)


def _differences_table(answers: Sequence[Difference], columns: Columns) -> str:
    labels = dict(COLUMNS)
    head = ["question", "difference", *labels_of(columns), "decided by", "bootstrap", "p", "p (Holm)", "above zero"]
    body = []
    for answer in answers:
        decisive = answer.decisive
        points = [_effect_text(answer.metrics.get(key)) for key, _ in columns]
        told = f"{labels[answer.comparison.metric]}: {verdict_text(decisive.seeds)}"
        tests = [interval_text(decisive.bootstrap), p_text(answer.p), p_text(answer.holm)]
        sides = f"{answer.left} − {answer.right}"
        above = f"{answer.better} of {answer.seeds}"
        body.append([answer.comparison.question, sides, *points, told, *tests, above])
    return _markdown_table(head, body)


def labels_of(columns: Columns) -> list[str]:
    """Return the names of the metrics."""
    return [label for _, label in columns]


def _effect_text(effect: Effect | None) -> str:
    if effect is None:
        return _NOTHING
    return ", ".join(part for part in (difference_text(effect.seeds), visible_text(effect)) if part)


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def means_csv(results: Sequence[WorldResult]) -> str:
    """Return the table of means: one row per world, variant and mode, four columns per metric."""
    return _csv(
        [
            {"world": result.name}
            | {name: getattr(each, name) for name in ("variant", "title", "group", "mode", "seeds")}
            | _of_metrics(each.metrics)
            | {"seconds_mean": each.seconds.mean if each.seconds else None}
            | _cameras(results)
            for result in results
            for each in result.variants
        ]
    )


def differences_csv(results: Sequence[WorldResult]) -> str:
    """Return the table of differences: one row per world and comparison, its sides as variant:mode."""
    return _csv(
        [
            {"world": result.name}
            | {name: getattr(answer.comparison, name) for name in ("group", "question", "metric", "planned")}
            | {name: ":".join(getattr(answer.comparison, name)) for name in ("left", "right")}
            | {name: getattr(answer, name) for name in ("seeds", "better", "p", "holm")}
            | {"verdict": verdict_text(answer.decisive.seeds)}
            | _of_effects(answer.metrics)
            | _cameras(results)
            for result in results
            for answer in result.answers
        ]
    )


def _cameras(results: Sequence[WorldResult]) -> dict[str, Any]:
    """Return a column that is only there in a dataset without cameras."""
    return {"cameras": "unknown"} if any(without_cameras(result.rows) for result in results) else {}


def _of_metrics(metrics: Mapping[str, SeedMean]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, _ in COLUMNS:
        part = metrics.get(key)
        low, high = (part.interval if part else None) or (None, None)
        found |= {f"{key}_mean": part.mean if part else None, f"{key}_deviation": part.deviation if part else None}
        found |= {f"{key}_low": low, f"{key}_high": high}
    return found


def _of_effects(effects: Mapping[str, Effect]) -> dict[str, float | None]:
    found = _of_metrics({key: effect.seeds for key, effect in effects.items()})
    for key, _ in COLUMNS:
        effect = effects.get(key)
        low, high = (effect.bootstrap if effect else None) or (None, None)
        found |= {f"{key}_bootstrap_low": low, f"{key}_bootstrap_high": high}
        found[f"{key}_visible"] = effect.visible if effect else None
    return found


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    import pandas as pd

    return str(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
