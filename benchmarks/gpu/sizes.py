"""Sizes of the run on a GPU and of its dry form on a CPU. Both run the same code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench_training import Backbone


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of all parts.

    judged: whether speeds have targets; a CPU's are only measured. side: of the matrix product whose rate is the
    reference. llava, compiled_llava: keys of `bench_captioning_shapes.SHAPES`. batch: images per batch. crowd: images
    of a batch that does not fit into the memory. held: the dry form has no memory to run out of, so its model pretends
    to with more images than that. compiles: whether compiled parts are really compiled. height, width, identities,
    images: of the training batches. steps: per epoch of a timed training. parity: identities and images of the batches
    whose losses are compared, and the number of steps. files: images
    that are embedded. ranking: queries, gallery, identities, cameras. demo, together:
    settings of the demo, and of the training in two processes. peer: a checkout of Syliz517/CLIP-ReID.
    """

    judged: bool
    side: int
    llava: str
    compiled_llava: str
    batch: int
    crowd: int
    held: int
    compiles: bool
    backbones: tuple[Backbone, ...]
    height: int
    width: int
    identities: int
    images: int
    steps: int
    parity: tuple[int, int, int]
    files: int
    ranking: tuple[int, int, int, int]
    demo: tuple[str, ...]
    together: tuple[str, ...]
    peer: Path | None = None


_SMALL_WORLD: Final = (
    "synthetic.train_identities=6",
    "synthetic.test_identities=5",
    "synthetic.cameras=2",
    "train.batch.identities=4",
    "train.schedule.epochs=2",
)

FULL: Final = Sizes(
    judged=True,
    side=8192,
    llava="llava-1.5-7b",
    compiled_llava="llava-1.5-7b-quarter",
    batch=64,
    crowd=512,
    held=0,
    compiles=True,
    backbones=("vit_b16", "rn50"),
    height=256,
    width=128,
    identities=16,
    images=4,
    steps=30,
    parity=(4, 2, 20),
    files=8192,
    ranking=(11_659, 82_161, 3_060, 15),
    demo=(),
    together=("synthetic.train_identities=32", "synthetic.test_identities=5", "train.schedule.epochs=4"),
)
DRY: Final = Sizes(
    judged=False,
    side=256,
    llava="dry",
    compiled_llava="dry",
    batch=8,
    crowd=8,
    held=4,
    compiles=False,
    backbones=("tiny",),
    height=64,
    width=32,
    identities=4,
    images=2,
    steps=2,
    parity=(4, 2, 20),
    files=24,
    ranking=(120, 900, 30, 3),
    demo=_SMALL_WORLD,
    together=_SMALL_WORLD,
)
