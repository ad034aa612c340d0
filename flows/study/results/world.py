"""The results of one world: its rows with their statistics, and the sentences that tables and pages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from flows.study.plan.main import ORACLES
from flows.study.plan.parts import GROUPS
from flows.study.rows import RunRow, finished, unfinished, without_cameras, worlds_of
from flows.study.statistics.power import POWER
from flows.study.statistics.queries import QueryReader
from flows.study.statistics.scores import Difference, VariantScores, differences, variant_scores
from reid.evaluation.protocol import NO_CAMERAS

GROUP_TITLES: Final = {
    "main": "Methods and controls",
    "queries": "CLIP-SCGI over K",
    "depth": "CLIP-SCGI over depth",
    "settings": "Settings that the paper leaves open",
    "joint": "Keeping search by sentence",
    "why": "Further controls",
}
VERDICT: Final = (
    "The verdict rests on the 95 % t-interval over seeds: seeds are independent, and each has its own training and, "
    "unless the dataset is fixed, its own people."
)
BOOTSTRAP: Final = (
    "The bootstrap draws seeds and, within each, identities with all their queries; with few seeds it is too narrow, "
    "so it only supplements the t-interval."
)
VISIBLE: Final = (
    "Visible: the smallest difference that a two-sided test at 5 % would have found with a chance of "
    f"{100 * POWER:.0f} % at this deviation and number of seeds. A difference that is not shown can be as large."
)


@dataclass(frozen=True, kw_only=True)
class WorldResult:
    """The rows of one world with their statistics."""

    name: str
    rows: Sequence[RunRow]
    variants: Sequence[VariantScores]
    answers: Sequence[Difference]

    @property
    def groups(self) -> list[str]:
        """The groups that have a variant with a result."""
        return [group for group in GROUPS if any(each.group == group for each in self.variants)]

    def variants_in(self, group: str) -> list[VariantScores]:
        """Return the variants of a group."""
        return [each for each in self.variants if each.group == group]

    def answers_in(self, group: str) -> list[Difference]:
        """Return the comparisons of a group that have an answer."""
        return [each for each in self.answers if each.comparison.group == group]

    @property
    def unfinished(self) -> list[RunRow]:
        """The rows of runs without a result."""
        return unfinished(self.rows)

    @property
    def camera_note(self) -> str:
        """What a dataset without cameras changes, or an empty text."""
        return f"{NO_CAMERAS.capitalize()}." if without_cameras(self.rows) else ""

    @cached_property
    def datasets(self) -> list[RunRow]:
        """The first row of every dataset that has a result."""
        found: dict[str | None, RunRow] = {}
        for row in finished(self.rows):
            found.setdefault(row.dataset_hash, row)
        return list(found.values())

    @property
    def sentences(self) -> str:
        """Which sentences search by sentence has measured, or an empty text."""
        row = next((row for row in finished(self.rows) if row.t2i_source), None)
        if row is None:
            return ""
        source = {"captions": "the captioner's captions of the query images, for every variant"}
        return f"Text: search of the gallery by {source.get(row.t2i_source or '', 'the sentences of the dataset')}."

    @property
    def oracle(self) -> str:
        """What captions could add at most, one sentence for each oracle, or an empty text."""
        by_side = {(answer.comparison.left[0], answer.comparison.right[0]): answer for answer in self.answers}
        found = [(by_side.get((oracle, variant))) for variant, oracle in ORACLES.items()]
        said = [_oracle_text(answer) for answer in found if answer is not None]
        return " ".join(said)

    @property
    def multiplicity(self) -> str:
        """How many comparisons there are, and what that means."""
        planned = sum(answer.holm is not None for answer in self.answers)
        count = len(self.answers)
        text = (
            f"{count} comparisons: if nothing mattered, about {count / 20:.1f} of their intervals would exclude zero "
            "by chance."
        )
        return text + (f" The {planned} planned ones have p values adjusted by Holm's method." if planned else "")


def _oracle_text(answer: Difference) -> str:
    gain = answer.metrics["mAP"].seeds.mean
    return f"Oracle: the true attributes of all test images, known at test time, add {gain:.1f} mAP to {answer.right}."


def world_results(rows: Sequence[RunRow], queries: QueryReader | None) -> list[WorldResult]:
    """Return the results of every world in `rows`."""
    found = []
    for world in worlds_of(rows):
        own = [row for row in rows if row.world == world]
        answers = differences(own, queries=queries)
        found.append(WorldResult(name=world, rows=own, variants=variant_scores(own), answers=answers))
    return found
