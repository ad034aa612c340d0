"""Statistics of a study: scores over seeds, and differences paired by seed and by query.

All figures are points (percent).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from flows.report.scores import METRICS
from flows.study.plan.catalogue import COMPARISONS
from flows.study.plan.parts import Comparison
from flows.study.rows import RunRow, finished
from flows.study.statistics.bootstrap import nested_intervals
from flows.study.statistics.means import SeedMean, seed_mean
from flows.study.statistics.power import holm, p_value, smallest_visible
from flows.study.statistics.queries import IMAGES, SENTENCES, QueryReader
from flows.study.statistics.queries import METRICS as PER_QUERY
from reid.evaluation.intervals import Interval

COLUMNS: Final = (
    *((key, dict(METRICS)[key]) for key in ("mAP", "rank1", "mINP")),
    ("t2i_mAP", "text mAP"),
    ("t2i_rank1", "text R1"),
)
"""Metrics that the tables of a study show, with their names."""


@dataclass(frozen=True, kw_only=True)
class VariantScores:
    """A variant in one inference mode, over its seeds.

    metrics: without those that were not measured. seconds: of training; None where unknown.
    """

    variant: str
    title: str
    group: str
    mode: str
    metrics: Mapping[str, SeedMean]
    seconds: SeedMean | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A paired difference in one metric.

    seeds: over seeds; the verdict rests on its t-interval. bootstrap: interval over seeds and identities; None without
    scores of single queries or with one seed. visible: the smallest difference that this comparison could have seen
    (`smallest_visible`).
    """

    seeds: SeedMean
    bootstrap: Interval | None
    visible: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The answer to one comparison, over the seeds that both sides have.

    metrics: without those that a side lacks. better: seeds in which left exceeds right in the metric of the comparison.
    p: its p value. holm: the same, adjusted for the planned comparisons with an answer; None for the others.
    """

    comparison: Comparison
    left: str
    right: str
    metrics: Mapping[str, Effect]
    better: int
    seeds: int
    p: float | None = None
    holm: float | None = None

    @property
    def decisive(self) -> Effect:
        """The effect in the metric that decides the verdict."""
        return self.metrics[self.comparison.metric]


def variant_scores(rows: Sequence[RunRow]) -> list[VariantScores]:
    """Return the scores of every variant and mode that has a result, in the order of `rows`."""
    found: dict[tuple[str, str | None], list[RunRow]] = {}
    for row in finished(rows):
        found.setdefault((row.variant, row.mode), []).append(row)
    return [_variant_scores(part) for part in found.values()]


def _variant_scores(rows: Sequence[RunRow]) -> VariantScores:
    seconds = [row.seconds for row in rows if row.seconds is not None]
    measured = {key: [100 * row.scores[key] for row in rows if key in row.scores] for key, _ in COLUMNS}
    return VariantScores(
        variant=rows[0].variant,
        title=rows[0].title,
        group=rows[0].group,
        mode=rows[0].mode or "",
        metrics={key: seed_mean(values) for key, values in measured.items() if values},
        seconds=seed_mean(seconds) if seconds else None,
        seeds=len(rows),
    )


def differences(
    rows: Sequence[RunRow], comparisons: Sequence[Comparison] = COMPARISONS, queries: QueryReader | None = None
) -> list[Difference]:
    """Return the differences left - right of the comparisons that have a seed with both sides.

    rows: of one world. queries: reads the scores of single queries, which the bootstrap needs.
    """
    found: dict[tuple[str, str | None], dict[int, RunRow]] = {}
    for row in finished(rows):
        found.setdefault((row.variant, row.mode), {})[row.seed] = row
    answers = []
    for comparison in comparisons:
        left, right = found.get(comparison.left, {}), found.get(comparison.right, {})
        pairs = [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]
        metrics = _effects(pairs, queries)
        if comparison.metric in metrics:
            answers.append(_difference(comparison, pairs, metrics))
    return _adjusted(answers)


def _effects(pairs: Sequence[tuple[RunRow, RunRow]], queries: QueryReader | None) -> dict[str, Effect]:
    """Return the effects of the metrics that all rows have; search by sentence has none in fused mode."""
    keys = [key for key, _ in COLUMNS if pairs and all(key in row.scores for pair in pairs for row in pair)]
    bootstraps = _bootstraps(pairs, queries) if queries is not None and len(pairs) > 1 else {}
    effects = {}
    for key in keys:
        part = seed_mean([100 * (left.scores[key] - right.scores[key]) for left, right in pairs])
        effects[key] = Effect(seeds=part, bootstrap=bootstraps.get(key), visible=smallest_visible(part))
    return effects


def _bootstraps(pairs: Sequence[tuple[RunRow, RunRow]], queries: QueryReader) -> dict[str, Interval]:
    same_people = len({row.dataset_hash for pair in pairs for row in pair}) == 1
    found: dict[str, Interval] = {}
    for file in (IMAGES, SENTENCES):
        gains = queries.gains(pairs, file)
        if gains is not None:
            found |= zip(PER_QUERY[file], nested_intervals(gains, same_people=same_people), strict=True)
    return found


def _difference(
    comparison: Comparison, pairs: Sequence[tuple[RunRow, RunRow]], metrics: Mapping[str, Effect]
) -> Difference:
    decisive = metrics[comparison.metric].seeds
    return Difference(
        comparison=comparison,
        left=_side(pairs[0][0]),
        right=_side(pairs[0][1]),
        metrics=metrics,
        better=sum(value > 0 for value in decisive.values),
        seeds=len(pairs),
        p=p_value(decisive),
    )


def _adjusted(answers: Sequence[Difference]) -> list[Difference]:
    """Return the answers, the planned ones with their adjusted p value."""
    planned = [number for number, each in enumerate(answers) if each.comparison.planned and each.p is not None]
    adjusted = dict(zip(planned, holm([answers[number].p or 0.0 for number in planned]), strict=True))
    return [replace(each, holm=adjusted.get(number)) for number, each in enumerate(answers)]


def _side(row: RunRow) -> str:
    return f"{row.title} ({row.mode})"
