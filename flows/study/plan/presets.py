"""The sizes of a study: how many seeds, which groups, and in which worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from flows.study.plan.parts import GROUPS, Group, StudyConfig

BENCHMARK: Final = "benchmark"
TRAP: Final = "benchmark_clothes"
WORLDS: Final = (BENCHMARK, "benchmark_language", "benchmark_domain", TRAP)
"""Recipes of synthetic people: no room for captions, much, under a change of cameras, and a trap."""
_ELSEWHERE: Final[tuple[Group, ...]] = ("main", "joint")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named size of a study.

    worlds: recipes that are studied unless one is named. settings, world: overrides of a recipe; `world` only if it
    draws synthetic people. own: overrides of one recipe, by its name. short: recipes whose main group has as few seeds
    as the others.
    """

    config: StudyConfig
    worlds: Sequence[str] = (BENCHMARK,)
    settings: Sequence[str] = ()
    world: Sequence[str] = ()
    own: Mapping[str, Sequence[str]] = field(default_factory=lambda: MappingProxyType({}))
    short: Sequence[str] = ()

    def seeds_of(self, recipe: str) -> int:
        """Return the number of seeds of the group main with `recipe`."""
        return self.config.sweep_seeds or self.config.seeds if recipe in self.short else self.config.seeds

    def groups_of(self, recipe: str) -> tuple[Group, ...]:
        """Return the groups that are studied with `recipe`: all on the benchmark, main in the trap, else two."""
        known = GROUPS if recipe == BENCHMARK else ("main",) if recipe == TRAP else _ELSEWHERE
        return tuple(group for group in self.config.groups if group in known)


def _schedule(*, epochs: int, warmup: int, milestones: Sequence[int]) -> tuple[str, ...]:
    keys = {"epochs": epochs, "warmup_epochs": warmup, "milestones": list(milestones)}
    return tuple(f"train.schedule.{key}={value}" for key, value in keys.items())


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
        "full": Preset(
            config=StudyConfig(seeds=5, sweep_seeds=3, groups=GROUPS),
            worlds=WORLDS,
            settings=("train.precision=bf16",),
            own={
                BENCHMARK: _schedule(epochs=12, warmup=2, milestones=[8, 11]),
                "pku_reid": _schedule(epochs=24, warmup=3, milestones=[17, 22]),
            },
            short=("benchmark_domain", TRAP, "pku_reid"),
        ),
    }
)
"""quick: a short check with a rough comparison of the methods. full: all groups and worlds, trained in bf16. The group
main has five seeds on the benchmark and where captions have most room, three elsewhere. A run has 96 to 144 steps: half
of the benchmark's epochs, two thirds of PKU-Reid's."""
