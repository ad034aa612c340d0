"""Parts of a plan: the config of a study, its variants and its comparisons, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

from data.config import Config
from reid.config.train import Method

Captions = Literal["none", "captioner", "shuffled", "scattered", "true", "constant", "empty"]
"""Captions of the training images of a variant.

none: the method reads none. captioner: those of the captioner. shuffled: those of one other person, consistently.
scattered: those of any other people, image by image. true: the true attributes of a synthetic image. constant: one
fixed caption for all images. empty: an empty text for all images (`data.schemas.WORDLESS`).
"""

Group = Literal["main", "queries", "depth", "settings", "joint", "why"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)
Metric = Literal["mAP", "t2i_mAP"]

IMAGE, FUSED = "image", "fused"


class StudyConfig(Config):
    """Size of a study of one world."""

    seeds: Annotated[int, Field(ge=1)] = 3
    """Repetitions of every variant; intervals need at least two."""
    sweep_seeds: Annotated[int, Field(ge=1)] | None = None
    """Repetitions of the variants outside the group main; null: as many as `seeds`."""
    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = ("main",)
    """main: the methods and controls. queries, depth: CLIP-SCGI over K and over depth. settings: what the paper leaves
    open. joint: ways to keep search by sentence. why: further controls."""
    resample: bool = True
    """Each seed has its own people (another synthetic world, another split) and its own training, so that intervals
    cover other people too. False: the seed changes the training alone."""

    def seeds_of(self, group: Group) -> int:
        """Return the number of seeds of the variants of `group`."""
        return self.seeds if group == "main" or self.sweep_seeds is None else self.sweep_seeds


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method, the source of its captions, and its changes to the recipe's training.

    changes: dotted key of TrainConfig -> value. stretch: factor on the length of the training.
    """

    name: str
    title: str
    group: Group = "main"
    method: Method = "clip_scgi"
    captions: Captions = "captioner"
    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    stretch: int = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question that the difference left - right answers, seed by seed. Each side is (variant, inference mode).

    metric: decides the verdict. planned: one of the main questions, whose p values are adjusted together
    (`flows.study.statistics.power.holm`).
    """

    question: str
    left: tuple[str, str]
    right: tuple[str, str]
    group: Group = "main"
    metric: Metric = "mAP"
    planned: bool = False


def ask(
    question: str,
    left: str,
    right: str,
    *,
    group: Group = "main",
    fused: bool = False,
    metric: Metric = "mAP",
    planned: bool = False,
) -> Comparison:
    """Return the comparison of two variants in the same mode."""
    mode = FUSED if fused else IMAGE
    sides = {"left": (left, mode), "right": (right, mode)}
    return Comparison(question=question, **sides, group=group, metric=metric, planned=planned)
