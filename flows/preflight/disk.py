"""How much a run will write, and whether the disk has room: estimates from index and settings, rather too high."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, ArtifactStore, fingerprint_of
from data.errors import ClipScgiError
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.inputs.pixel_cache import STAGE as PIXELS
from reid.inputs.pixel_cache import pixels_ingredients
from reid.models.pretrained import weights_file

_CAPTION_BYTES: Final = 2_000  # one row of a shard and one of captions.parquet, with a long reply
_FEATURE_BYTES: Final = 2_048  # a text feature: 512 numbers
_EMBEDDING_BYTES: Final = 3 * 5_120  # untrained, image and fused: 1,280 numbers each
_RANKED_BYTES: Final = 3 * 100  # a neighbor of a query, in these three rankings
_COPIES: Final = 3  # Adam keeps two more numbers per weight
_RANDOM_BYTES: Final = {"tiny": 6_000_000, "vit_b16": 600_000_000, "rn50": 410_000_000}
"""Bytes of the weights of a backbone without a file."""

Strings = NDArray[np.object_]


def space_problems(
    store: ArtifactStore,
    images: ArtifactRef,
    split: Strings,
    settings: tuple[TrainConfig, EvaluateConfig],
    stages: frozenset[str],
) -> Iterator[str]:
    """Yield what to do if the disk of the artifact root has less room than `stages` will write.

    split: [N], of the indexed images. What is there already, a killed training's checkpoints included, is not counted.
    """
    wanted = sizes(store, images, split, settings, stages)
    total, free = sum(wanted.values()), free_bytes(store.root)
    if total > free:
        parts = ", ".join(f"{name} {shown(size)}" for name, size in wanted.items() if size)
        yield (
            f"the disk of the artifact root {store.root} has {shown(free)} free and this run writes up to "
            f"{shown(total)} ({parts}): free {shown(total - free)}, or set --home to a folder on a larger disk"
        )


def sizes(
    store: ArtifactStore,
    images: ArtifactRef,
    split: Strings,
    settings: tuple[TrainConfig, EvaluateConfig],
    stages: frozenset[str],
) -> dict[str, int]:
    """Return name -> bytes that `stages` will write at most and that are not there yet."""
    train, evaluate = settings
    n, n_train, n_query = len(split), int((split == "train").sum()), int((split == "query").sum())
    found: dict[str, int] = {}
    if "caption" in stages:
        found["captions"] = n * _CAPTION_BYTES
    if {"train", "evaluate"} & stages and not _has_pixels(store, images, train):
        found["pixels"] = n * train.backbone.height * train.backbone.width * 3
    if "train" in stages:
        found["caption features"] = n_train * _FEATURE_BYTES if train.needs_captions else 0
        found["model and checkpoints"] = training_bytes(train)
    if "evaluate" in stages:
        found["embeddings"] = (n - n_train) * _EMBEDDING_BYTES
        found["rankings"] = n_query * evaluate.top_k * _RANKED_BYTES
    return found


def training_bytes(config: TrainConfig) -> int:
    """Return the bytes of a model, its best epochs and two checkpoints: the older goes when the newer is written."""
    weights = _weight_bytes(config)
    copies = 1
    if config.checkpoint_every:
        copies += 2 * _COPIES
    if config.validation.keep == "best":
        copies += 2
    return copies * weights


def _weight_bytes(config: TrainConfig) -> int:
    try:
        file = weights_file(config.backbone)
    except ClipScgiError:
        return 0  # its own check says that the file is not there
    return _RANDOM_BYTES[config.backbone.name] if file is None else file.stat().st_size


def _has_pixels(store: ArtifactStore, images: ArtifactRef, config: TrainConfig) -> bool:
    size: Mapping[str, Any] = {"height": config.backbone.height, "width": config.backbone.width}
    return store.folder(PIXELS, fingerprint_of(PIXELS, pixels_ingredients(images=images, **size))).is_dir()


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` is on, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def shown(size: float) -> str:
    """Return a number of bytes as people read it, such as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
