"""The sizes of a study: how many seeds, which groups, and in which worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flows.study.plan.parts import GROUPS, Group, StudyConfig

BENCHMARK: Final = "benchmark"
WORLDS: Final = (BENCHMARK, "benchmark_language", "benchmark_domain", "benchmark_clothes")
"""Recipes of synthetic people: no room for captions, much, under a change of cameras, and a trap."""
_ELSEWHERE: Final[tuple[Group, ...]] = ("main", "joint")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named size of a study.

    worlds: recipes that are studied unless one is named. settings, world: overrides of a recipe; `world` only if it
    draws synthetic people.
    """

    config: StudyConfig
    worlds: Sequence[str] = (BENCHMARK,)
    settings: Sequence[str] = ()
    world: Sequence[str] = ()

    def groups_of(self, recipe: str) -> tuple[Group, ...]:
        """Return the groups that are studied with `recipe`: all on the benchmark, elsewhere main and joint."""
        known = GROUPS if recipe == BENCHMARK else _ELSEWHERE
        return tuple(group for group in self.config.groups if group in known)


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "quick": Preset(
            config=StudyConfig(seeds=2),
            settings=(
                "train.schedule.epochs=6",
                "train.schedule.warmup_epochs=1",
                "train.schedule.milestones=[5]",
            ),
            world=("synthetic.train_identities=48", "synthetic.test_identities=24"),
        ),
        "full": Preset(config=StudyConfig(seeds=5, sweep_seeds=3, groups=GROUPS), worlds=WORLDS),
    }
)
"""quick: a short check with a rough comparison of the methods. full: the recipes as they are, with all groups."""
