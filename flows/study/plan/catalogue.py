"""All variants and comparisons of a study, from the modules of the groups."""

from __future__ import annotations

from typing import Final

from flows.study.plan import joint, main, sweeps, why
from flows.study.plan.parts import Comparison, StudyConfig, Variant

VARIANTS: Final[tuple[Variant, ...]] = (*main.VARIANTS, *sweeps.VARIANTS, *joint.VARIANTS, *why.VARIANTS)
"""All variants. Variants that come to the same training (K = 2 is the published K) share one run of it."""

COMPARISONS: Final[tuple[Comparison, ...]] = (
    *main.COMPARISONS,
    *sweeps.COMPARISONS,
    *joint.COMPARISONS,
    *why.COMPARISONS,
)
"""The differences that a study reports."""


def variants_of(config: StudyConfig, seed: int = 0) -> tuple[Variant, ...]:
    """Return the variants of the groups in `config` that are trained with `seed`."""
    return tuple(each for each in VARIANTS if each.group in config.groups and seed < config.seeds_of(each.group))
