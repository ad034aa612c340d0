"""Paired comparison of evaluations: the first is the baseline, and each other one is compared with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError
from data.people import IdentityName, Names
from flows.comparison.differences import TIE, MetricDifference, metric_differences
from flows.comparison.images import TestImages, count_beyond, find_test_images, relabeled
from flows.comparison.queries import MatchedBy, Paired, pair_queries, read_scores
from flows.comparison.runs import RankedRow, Run, choose_rows
from flows.comparison.sentences import TextDifference, text_difference
from flows.comparison.settings import SettingPair, differing_settings
from flows.report.scores import METRICS
from reid.evaluation.bootstrap import MIN_UNITS, Unit, method
from reid.evaluation.protocol import camera_note, mode_notes


class QueryPair(NamedTuple):
    """One query in both runs.

    path: in the run. identity: without its label if the index is unknown. AP: fractions. first hits: ranks of the first
    match.
    """

    path: str
    baseline_path: str
    identity: IdentityName
    camid: int
    baseline_ap: float
    ap: float
    baseline_first_hit: int
    first_hit: int

    @property
    def gain(self) -> float:
        """Difference of average precision, run - baseline, a fraction."""
        return self.ap - self.baseline_ap


class QueryPairs(Sequence[QueryPair]):
    """The paired queries of two runs, the greatest gain of average precision first. A pair is made when it is read."""

    def __init__(self, paired: Paired, names: Names) -> None:
        self._base, self._ours, self._names = paired.baseline, paired.run, names
        keys = pa.table({"loss": self._base.ap - self._ours.ap, "path": self._ours.path})
        sort_keys = [("loss", "ascending"), ("path", "ascending")]
        self._order = pc.sort_indices(keys, sort_keys=sort_keys).to_numpy().astype(np.int64)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> QueryPair: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[QueryPair, ...]: ...
    def __getitem__(self, index: int | slice) -> QueryPair | tuple[QueryPair, ...]:
        """Return one pair, or those of a slice."""
        if isinstance(index, slice):
            return tuple(map(self._pair, self._order[index]))
        return self._pair(self._order[index])

    def __eq__(self, other: object) -> bool:
        """Return True if the other sequence has the same pairs."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _pair(self, at: int) -> QueryPair:
        base, ours = self._base, self._ours
        return QueryPair(
            path=ours.path[at],
            baseline_path=base.path[at],
            identity=self._names(int(base.pid[at])),
            camid=int(base.camid[at]),
            baseline_ap=float(base.ap[at]),
            ap=float(ours.ap[at]),
            baseline_first_hit=int(base.first_hit[at]),
            first_hit=int(ours.first_hit[at]),
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One run against the baseline.

    queries: the paired ones, the greatest gain of average precision first. only_baseline, only_run: paths of the
    queries that only one of the two has, which are left out. settings: those by which the two differ. notices: what
    limits the comparison, sentences.
    """

    ranked: RankedRow
    metrics: tuple[MetricDifference, ...]
    text: TextDifference
    queries: QueryPairs
    n_identities: int
    matched_by: MatchedBy
    only_baseline: tuple[str, ...]
    only_run: tuple[str, ...]
    settings: tuple[SettingPair, ...]
    notices: tuple[str, ...]

    def most_won(self, count: int) -> tuple[QueryPair, ...]:
        """Return up to `count` queries whose average precision rose most, the greatest gain first."""
        return tuple(pair for pair in self.queries[:count] if pair.gain > TIE)

    def most_lost(self, count: int) -> tuple[QueryPair, ...]:
        """Return up to `count` queries whose average precision fell most, the greatest loss first."""
        return tuple(pair for pair in self.queries[: -count - 1 : -1] if pair.gain < -TIE)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A baseline and the runs compared with it. method: how the intervals were made, a sentence."""

    baseline: RankedRow
    differences: tuple[Difference, ...]
    method: str

    @property
    def rows(self) -> tuple[RankedRow, ...]:
        """Everything that is compared, the baseline first."""
        return (self.baseline, *(difference.ranked for difference in self.differences))


def compare(
    runs: Sequence[Run],
    store: ArtifactStore,
    *,
    models: Sequence[str] = (),
    modes: Sequence[str] = (),
    unit: Unit = "identities",
    different_galleries: bool = False,
) -> Comparison:
    """Compare runs with the first of them.

    Args:
        runs: at least two (`flows.comparison.runs.find_run`).
        store: where the index artifacts of the runs are looked up.
        models: nothing, one for all runs, or one per run; by default the trained model where a run has one.
        modes: likewise; by default image, or else the first mode that all runs have.
        unit: what the bootstrap draws.
        different_galleries: compare runs whose galleries or rules differ too, with a notice.

    Raises:
        ConfigError: a run does not have the row, or two runs have different galleries or no query in common.
        DataError: a ranking cannot be read.
    """
    if len(runs) < 2:
        raise ConfigError("compare: give two or more evaluations; the first is the baseline")
    baseline, *others = choose_rows(runs, models, modes)
    distinct = {run.test_images: run for run in runs}
    images = {digest: find_test_images(run, store) for digest, run in distinct.items()}
    task = _Task(baseline=baseline, store=store, images=images, unit=unit, different_galleries=different_galleries)
    differences = [_difference(task, other) for other in others]
    return Comparison(baseline=baseline, differences=tuple(differences), method=method(unit))


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What the comparisons with one baseline share. images: by `Run.test_images`; see `compare` for the rest."""

    baseline: RankedRow
    store: ArtifactStore
    images: Mapping[str, TestImages | None]
    unit: Unit
    different_galleries: bool


def _difference(task: _Task, other: RankedRow) -> Difference:
    baseline = task.baseline
    first, second = (task.images[ranked.run.test_images] for ranked in (baseline, other))
    same_images = _same_images(baseline.run, other.run)
    known = (None, None) if same_images else (first, second)
    paired = pair_queries(read_scores(baseline), read_scores(other), known)
    if not len(paired.run.path):
        datasets = f"{baseline.run.dataset} and {other.run.dataset}"
        raise ConfigError(
            f"compare: {_named(baseline)} and {_named(other)} have no query in common (matched by {paired.matched_by}; "
            f"their datasets are {datasets}). Compare evaluations of the same queries"
        )
    problems = [*([] if same_images else _gallery_problems(first, second)), *_rule_problems(baseline, other, paired)]
    if problems and not task.different_galleries:
        raise ConfigError(
            f"compare: {_named(baseline)} and {_named(other)} cannot be compared: {'; '.join(problems)}. Scores differ "
            "for that reason alone; add --different-galleries to compare them nevertheless"
        )
    base, ours, identities = paired.baseline.values(), paired.run.values(), paired.baseline.pid
    metrics = metric_differences(base, ours, identities, METRICS, task.unit)
    return Difference(
        ranked=other,
        metrics=metrics,
        text=text_difference(baseline, other, task.unit),
        queries=QueryPairs(paired, first.names if first else IdentityName),
        n_identities=len(np.unique(identities)),
        matched_by=paired.matched_by,
        only_baseline=paired.only_baseline,
        only_run=paired.only_run,
        settings=differing_settings(baseline.run, other.run, task.store),
        notices=tuple(_notices(task, other, problems, metrics)),
    )


def _named(ranked: RankedRow) -> str:
    return f"{ranked.run.name} ({ranked.run.key})" if ranked.run.name != ranked.run.key else ranked.run.key


def _same_images(baseline: Run, other: Run) -> bool:
    """Return True if both runs rank the same files at the same paths with the same labels."""
    return bool(baseline.test_images) and baseline.test_images == other.test_images


def _gallery_problems(first: TestImages | None, second: TestImages | None) -> list[str]:
    """Return how the galleries of two runs with different test images differ."""
    if first is None or second is None:
        return [
            "their test images differ, and the index artifact of at least one is not in this artifact root, so their "
            "galleries are unknown"
        ]
    gone, new = count_beyond(first.gallery, second.gallery), count_beyond(second.gallery, first.gallery)
    problems = [f"gallery images only in the first: {gone:,}, only in the second: {new:,}"] if gone or new else []
    changed = relabeled(first, second)
    return [*problems, *([f"images with another identity in the second: {changed:,}"] if changed else [])]


def _rule_problems(baseline: RankedRow, other: RankedRow, paired: Paired) -> list[str]:
    """Return how the rules of the two runs differ in which gallery images count."""
    draws = [ranked.run.protocol.get("gallery_draws") or 0 for ranked in (baseline, other)]
    if draws[0] != draws[1]:
        return [f"their numbers of drawn galleries are {draws[0]} and {draws[1]}"]
    changed = int((paired.baseline.n_relevant != paired.run.n_relevant).sum())
    return [f"queries with another number of matches in the second: {changed:,}"] if changed else []


def _notices(task: _Task, other: RankedRow, problems: Sequence[str], metrics: Sequence[MetricDifference]) -> list[str]:
    baseline = task.baseline
    notices = [f"not the same gallery: {problem}" for problem in problems]
    if (baseline.run.folder, baseline.row) == (other.run.folder, other.row):
        notices.append("the run is the baseline itself")
    notes = [note for ranked in (baseline, other) for note in _notes(ranked)]
    notices += [*dict.fromkeys(notes), *_rules_of_one(baseline.run, other.run)]
    if other.run.protocol.get("gallery_draws"):
        notices.append(
            "the scores of these runs are means over drawn galleries, but only the rankings of the first are kept, "
            "so this compares the runs on the first gallery"
        )
    if metrics[0].interval is None:
        notices.append(f"no intervals: they need queries of at least {MIN_UNITS} {task.unit}")
    return notices


def _notes(ranked: RankedRow) -> list[str]:
    """Return what to know about the scores of a run in the compared mode."""
    protocol = ranked.run.protocol
    cameras = camera_note(protocol)
    return [*([cameras] if cameras else []), *mode_notes(protocol, [ranked.row.mode])]


def _rules_of_one(baseline: Run, other: Run) -> list[str]:
    """Return a notice with the sentences of the two protocols that only one of them has, if there are any."""
    ours, theirs = (re.split(r"(?<=\.) ", str(run.protocol.get("description", ""))) for run in (baseline, other))
    sides = (("baseline", ours, theirs), ("run", theirs, ours))
    said = [(name, " ".join(text for text in own if text not in rest)) for name, own, rest in sides]
    parts = [f"only for the {name}: {text}" for name, text in said if text]
    return [f"the protocols differ; {' '.join(parts)}"] if parts else []
