"""A comparison as lines and tables for the terminal, and as plain JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from data.errors import counted
from flows.comparison.compare import Comparison, Difference, QueryPair
from flows.comparison.differences import MetricDifference
from flows.comparison.runs import RankedRow
from flows.comparison.sentences import TextDifference
from flows.comparison.settings import SettingPair
from flows.report.scores import interval_text, signed
from reid.evaluation.protocol import trained_elsewhere

_COLORS: Final = {"up": "green", "down": "red"}
_SETTINGS: Final = 12
_ONLY: Final = 3


def letter(number: int) -> str:
    """Return the short name of a run on pages and in tables: A for the baseline, then B, C, ..., Z, AA, AB, ..."""
    first, second = divmod(number, len(ascii_uppercase))
    return (letter(first - 1) if first else "") + ascii_uppercase[second]


def described(ranked: RankedRow) -> str:
    """Return one run in words: artifact, dataset, row of metrics.json, recipe and time."""
    run = ranked.run
    place = f"{run.key} on {trained_elsewhere(run.protocol)}{run.dataset}" if run.dataset else run.key
    recipe = f"recipe {run.recipe}" if run.recipe else ""
    created = f"{run.created.astimezone():%Y-%m-%d %H:%M}" if run.created else ""
    return "; ".join(part for part in (place, str(ranked.row), recipe, created) if part)


def only_text(paths: Sequence[str], name: str) -> str:
    """Return a sentence with the number and the first names of the queries that only one run has."""
    rest = len(paths) - _ONLY
    shown = ", ".join(paths[:_ONLY]) + (f" and {rest:,} more, which --json lists" if rest > 0 else "")
    return f"{len(paths):,} {'query' if len(paths) == 1 else 'queries'} only in {name}, left out: {shown}"


def notices_of(difference: Difference, name: str) -> list[str]:
    """Return what limits a comparison, including the queries that only one run has. name: of the run."""
    sides = ((difference.only_baseline, letter(0)), (difference.only_run, name))
    return [*difference.notices, *(only_text(paths, side) for paths, side in sides if paths)]


def lines(comparison: Comparison, *, top: int) -> Iterator[RenderableType]:
    """Yield what the terminal shows. top: queries in each list of the most won and the most lost."""
    for number, ranked in enumerate(comparison.rows):
        yield Text(f"{letter(number)}  {'baseline: ' if number == 0 else ''}{described(ranked)}")
    for number, difference in enumerate(comparison.differences, start=1):
        yield from _one(difference, letter(number), top)
    yield Text("")
    yield Text(f"{comparison.method}. Colored only where the interval excludes zero.{several(comparison)}", "dim")


def several(comparison: Comparison) -> str:
    """Return a sentence about several intervals at once, "" for a single comparison."""
    count = len(comparison.differences)
    if count < 2:
        return ""
    return f" Each of the {count} comparisons has its own intervals, which are not corrected for their number."


def _one(difference: Difference, name: str, top: int) -> Iterator[RenderableType]:
    yield Text("")
    yield Text(
        f"{name} against {letter(0)}: {len(difference.queries):,} queries of {difference.n_identities:,} identities in "
        f"both, matched by {difference.matched_by}",
        "bold",
    )
    for notice in notices_of(difference, name):
        yield Text().append("! ", "yellow").append(notice)
    if difference.settings:
        yield Text(f"settings: {_settings(difference.settings)}")
    yield _scores(difference.metrics, name)
    yield from _text_to_image(difference.text, name)
    for title, pairs in (
        (f"most won by {name}", difference.most_won(top)),
        (f"most lost by {name}", difference.most_lost(top)),
    ):
        if pairs:
            yield Text(title, "bold")
            yield _queries(pairs, name)


def _settings(settings: Sequence[SettingPair]) -> str:
    shown = ", ".join(f"{pair.key} {pair.baseline} → {pair.run}" for pair in settings[:_SETTINGS])
    left = len(settings) - _SETTINGS
    return f"{shown}, and {left} more" if left > 0 else shown


def _text_to_image(text: TextDifference, name: str) -> Iterator[RenderableType]:
    if text.problem:
        yield Text(text.problem)
        return
    yield Text(text_title(text), "bold")
    yield _scores(text.metrics, name)


def text_title(text: TextDifference) -> str:
    """Return whose sentences text to image is compared on, and how many, in words."""
    return (
        f"text to image, {text.source}: {counted(text.n_sentences, 'sentence')} about "
        f"{counted(text.n_identities, 'identity')}, the same in both"
    )


def _scores(metrics: Sequence[MetricDifference], name: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", letter(0), name, f"{name} − {letter(0)}", "95 % interval", "won", "lost", "tied"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for metric in metrics:
        color = _COLORS.get(metric.verdict, "")
        interval = interval_text(metric.interval) if metric.interval else "none"
        counts = (f"{count:,}" for count in metric.tally)
        table.add_row(
            metric.label,
            f"{metric.baseline:.1f}",
            f"{metric.run:.1f}",
            Text(signed(metric.points), color),
            Text(interval, color),
            *counts,
        )
    return table


def _queries(pairs: Sequence[QueryPair], name: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("query", overflow="fold", ratio=3)
    table.add_column("identity", overflow="fold", ratio=1)
    for column in (f"AP {letter(0)}", f"AP {name}", "gain", "first match"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in pairs:
        table.add_row(
            Text(pair.path),
            Text(str(pair.identity)),
            f"{100 * pair.baseline_ap:.1f}",
            f"{100 * pair.ap:.1f}",
            signed(100 * pair.gain),
            f"{pair.baseline_first_hit:,} → {pair.first_hit:,}",
        )
    return table


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON: metrics in percent, average precision of queries as fractions."""
    return {
        "interval": comparison.method,
        "baseline": _run_json(comparison.baseline),
        "runs": [_difference_json(difference) for difference in comparison.differences],
    }


def _run_json(ranked: RankedRow) -> dict[str, Any]:
    run = ranked.run
    return {
        "name": run.name,
        "fingerprint": run.fingerprint,
        "folder": str(run.folder),
        "recipe": run.recipe,
        "dataset": run.dataset,
        "created": run.created.isoformat() if run.created else None,
        "model": ranked.row.model,
        "mode": ranked.row.mode,
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "run": _run_json(difference.ranked),
        "queries": len(difference.queries),
        "identities": difference.n_identities,
        "matched_by": difference.matched_by,
        "only_baseline": list(difference.only_baseline),
        "only_run": list(difference.only_run),
        "notices": list(difference.notices),
        "settings": [pair._asdict() for pair in difference.settings],
        "metrics": _metrics_json(difference.metrics),
        "text_to_image": _text_json(difference.text),
        "pairs": [_pair_json(pair) for pair in difference.queries],
    }


def _metrics_json(metrics: Sequence[MetricDifference]) -> dict[str, Any]:
    return {
        metric.key: {
            "baseline": metric.baseline,
            "run": metric.run,
            "difference": metric.points,
            "interval": list(metric.interval) if metric.interval else None,
            **metric.tally._asdict(),
        }
        for metric in metrics
    }


def _text_json(text: TextDifference) -> dict[str, Any]:
    if text.problem:
        return {"problem": text.problem}
    return {
        "source": text.source,
        "sentences": text.n_sentences,
        "identities": text.n_identities,
        "metrics": _metrics_json(text.metrics),
    }


def _pair_json(pair: QueryPair) -> Mapping[str, Any]:
    plain = pair._asdict() | {"gain": pair.gain, "pid": pair.identity.pid, "label": pair.identity.label}
    return {name: value for name, value in plain.items() if name != "identity"}
