"""Plan of a study: methods and their controls, as frozen data.

Variants of one seed train for the same number of steps, at the same learning rates, on the same batches with the same
augmentation, so a difference between two of them comes from their changes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

from data.config import Config
from reid.config.train import Method

Captions = Literal["none", "captioner", "shuffled", "scattered", "true"]
"""Source of a variant's captions: none, the captioner, other people (consistently, or image by image), or the true
attributes of a synthetic image."""

Group = Literal["main", "queries", "depth", "why"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)


class StudyConfig(Config):
    """Size of a study."""

    seeds: Annotated[int, Field(ge=1)] = 3
    """Repetitions of every variant; intervals need at least two."""
    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = ("main",)
    """main: the methods and controls. queries, depth: CLIP-SCGI over K and over depth. why: further controls."""
    resample: bool = True
    """Each seed has its own people (another synthetic world, another split) and its own training, so that intervals
    cover other people too. False: the seed changes the training alone."""


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
    """A question that the difference left - right answers, seed by seed. Each side is (variant, inference mode)."""

    question: str
    left: tuple[str, str]
    right: tuple[str, str]


QUERIES: Final = (1, 2, 4, 8)
DEPTHS: Final = (1, 2, 3, 4, 5, 6)

_METHODS: Final = (
    Variant(name="baseline", title="CLIP baseline", method="clip_baseline", captions="none"),
    Variant(name="clip_reid", title="CLIP-ReID", method="clip_reid", captions="none"),
    Variant(name="cgi", title="CLIP-SCGI, CGI only", changes={"scgi.cff": False}),
    Variant(name="cff", title="CLIP-SCGI, CFF only", changes={"scgi.cgi": False}),
    Variant(name="scgi", title="CLIP-SCGI"),
    Variant(name="shuffled", title="CLIP-SCGI, other people's captions", captions="shuffled"),
    Variant(name="true", title="CLIP-SCGI, true attributes", captions="true"),
)
_QUERIES: Final = tuple(
    Variant(
        name=f"queries_{count}",
        title=f"CLIP-SCGI, K = {count}",
        group="queries",
        changes={"scgi.inversion_tokens": count},
    )
    for count in QUERIES
)
_DEPTHS: Final = tuple(
    Variant(name=f"depth_{count}", title=f"CLIP-SCGI, depth {count}", group="depth", changes={"scgi.depth": count})
    for count in DEPTHS
)
_WHY: Final = (
    Variant(name="scattered", title="CLIP-SCGI, anybody's captions", group="why", captions="scattered"),
    Variant(name="no_con", title="CLIP-SCGI without L_con", group="why", changes={"loss.contrast_weight": 0.0}),
    Variant(name="pair_image", title="CLIP-SCGI, L_con by image", group="why", changes={"scgi.pairing": "image"}),
    Variant(
        name="composed", title="CLIP-SCGI, composed prompt only", group="why", changes={"scgi.fixed_prompt_ratio": 0.0}
    ),
    Variant(
        name="clip_reid_id1",
        title="CLIP-ReID, L_id weighted as in CLIP-SCGI",
        group="why",
        method="clip_reid",
        captions="none",
        changes={"loss.id_weight": 1.0},
    ),
    Variant(
        name="baseline_id025",
        title="CLIP baseline, L_id weighted as in CLIP-ReID",
        group="why",
        method="clip_baseline",
        captions="none",
        changes={"loss.id_weight": 0.25},
    ),
    Variant(
        name="scgi_id025",
        title="CLIP-SCGI, L_id weighted as in CLIP-ReID",
        group="why",
        changes={"loss.id_weight": 0.25},
    ),
    Variant(
        name="long_baseline",
        title="CLIP baseline, twice as long",
        group="why",
        method="clip_baseline",
        captions="none",
        stretch=2,
    ),
    Variant(
        name="long_clip_reid",
        title="CLIP-ReID, twice as long",
        group="why",
        method="clip_reid",
        captions="none",
        stretch=2,
    ),
    Variant(name="long_scgi", title="CLIP-SCGI, twice as long", group="why", stretch=2),
)
VARIANTS: Final[tuple[Variant, ...]] = (*_METHODS, *_QUERIES, *_DEPTHS, *_WHY)
"""All variants. Variants that come to the same training (K = 2 is the published K) share one run of it."""

IMAGE, FUSED = "image", "fused"
COMPARISONS: Final = (
    Comparison(question="What do learned prompts add?", left=("clip_reid", IMAGE), right=("baseline", IMAGE)),
    Comparison(question="What does CLIP-SCGI add?", left=("scgi", IMAGE), right=("baseline", IMAGE)),
    Comparison(question="Does it beat CLIP-ReID?", left=("scgi", IMAGE), right=("clip_reid", IMAGE)),
    Comparison(question="Does its fused mode beat CLIP-ReID?", left=("scgi", FUSED), right=("clip_reid", IMAGE)),
    Comparison(question="What does fused inference add?", left=("scgi", FUSED), right=("scgi", IMAGE)),
    Comparison(question="What does CFF add to CGI?", left=("scgi", IMAGE), right=("cgi", IMAGE)),
    Comparison(question="What does CGI add to CFF?", left=("scgi", IMAGE), right=("cff", IMAGE)),
    Comparison(question="What does CGI add to CFF, fused?", left=("scgi", FUSED), right=("cff", FUSED)),
    Comparison(question="Do captions matter?", left=("scgi", IMAGE), right=("shuffled", IMAGE)),
    Comparison(question="Do captions matter, fused?", left=("scgi", FUSED), right=("shuffled", FUSED)),
    Comparison(question="What do wrong captions add?", left=("shuffled", IMAGE), right=("baseline", IMAGE)),
    Comparison(question="What would perfect captions add?", left=("true", IMAGE), right=("scgi", IMAGE)),
    Comparison(question="What would perfect captions add, fused?", left=("true", FUSED), right=("scgi", FUSED)),
    Comparison(question="Must captions of one person agree?", left=("shuffled", IMAGE), right=("scattered", IMAGE)),
    Comparison(question="What does L_con add?", left=("scgi", IMAGE), right=("no_con", IMAGE)),
    Comparison(question="Pairs by identity or by image?", left=("scgi", IMAGE), right=("pair_image", IMAGE)),
    Comparison(question="What does the fixed prompt in training add?", left=("scgi", FUSED), right=("composed", FUSED)),
    Comparison(
        question="Does a larger L_id help CLIP-ReID?", left=("clip_reid_id1", IMAGE), right=("clip_reid", IMAGE)
    ),
    Comparison(
        question="Does a smaller L_id help the baseline?", left=("baseline_id025", IMAGE), right=("baseline", IMAGE)
    ),
    Comparison(question="Does a smaller L_id help CLIP-SCGI?", left=("scgi_id025", IMAGE), right=("scgi", IMAGE)),
    Comparison(question="After twice the training?", left=("long_scgi", IMAGE), right=("long_clip_reid", IMAGE)),
    Comparison(question="Twice as long, over baseline?", left=("long_scgi", IMAGE), right=("long_baseline", IMAGE)),
    *(
        Comparison(question=f"K = {count} instead of 2?", left=(f"queries_{count}", IMAGE), right=("queries_2", IMAGE))
        for count in QUERIES
        if count != 2
    ),
    *(
        Comparison(question=f"Depth {count} instead of 1?", left=(f"depth_{count}", IMAGE), right=("depth_1", IMAGE))
        for count in DEPTHS
        if count != 1
    ),
)
"""The differences that a study reports. Those of group `why` look for the causes of the others."""


def variants_of(config: StudyConfig) -> tuple[Variant, ...]:
    """Return the variants of the groups in `config`."""
    return tuple(variant for variant in VARIANTS if variant.group in config.groups)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named size of a study. settings, world: overrides of the recipe; `world` only if it draws synthetic people."""

    config: StudyConfig
    settings: Sequence[str] = ()
    world: Sequence[str] = ()


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
        "full": Preset(config=StudyConfig(seeds=5, groups=GROUPS)),
    }
)
"""quick: a short check with a rough comparison of the methods. full: the recipe as it is, with all groups."""
