"""Checks of the disk: what can be written, and estimates, rather too high, of how much a run will write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from data.errors import ClipScgiError, ConfigError
from flows.preflight.plan import Plan
from flows.terminal import size
from reid.config.train import TrainConfig
from reid.inputs.pixel_cache import PixelStage
from reid.models.pretrained import weights_file

_FOLDERS: Final = ("stages", "work", "locks", "captions")
_CAPTION_BYTES: Final = 2_000  # one row of a shard and one of captions.parquet, with a long reply
_FEATURE_BYTES: Final = 2_048  # a text feature: 512 numbers
_EMBEDDING_BYTES: Final = 3 * 5_120  # untrained, image and fused: 1,280 numbers each
_RANKED_BYTES: Final = 3 * 100  # a neighbor of a query, in these three rankings
_COPIES: Final = 3  # Adam keeps two more numbers per weight
_PLAIN_BYTES: Final = {"tiny": 6_000_000, "vit_b16": 600_000_000, "rn50": 410_000_000}
"""Bytes of the float32 weights of each architecture."""


def disk_problems(plan: Plan) -> Iterator[str]:
    """Yield an artifact root that cannot be written or that lacks the space for what the stages will write.

    Everything that exists already, such as the checkpoints of a killed training, takes up space that is not free.
    """
    if not plan.stages:
        return
    root = plan.run.store.root
    closed = closed_folders(root)
    if closed:
        yield f"the artifact root cannot be written ({closed[0]}): set --home to a folder of your own"
        return
    wanted = sizes(plan)
    total, free = sum(wanted.values()), free_bytes(root)
    if total > free:
        parts = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in wanted.items() if n_bytes)
        yield (
            f"the disk of the artifact root {root} has {size(free)} free and this run writes up to "
            f"{size(total)} ({parts}): free {size(total - free)}, or set --home to a folder on a larger disk"
        )


def closed_folders(root: Path) -> list[Path]:
    """Return the folders of the artifact root `root` in which nothing can be written."""
    return [folder for folder in (root, *(root / name for name in _FOLDERS)) if not writable(folder)]


def sizes(plan: Plan) -> dict[str, int]:
    """Return name -> bytes that the stages will write at most and that do not exist yet."""
    train, split = plan.train, plan.rows.split
    n, n_train, n_query = len(split), int((split == "train").sum()), int((split == "query").sum())
    found: dict[str, int] = {}
    if "caption" in plan.stages:
        found["captions"] = n * _CAPTION_BYTES
    if {"train", "evaluate"} & plan.stages and not _has_pixels(plan):
        found["pixels"] = n * train.backbone.height * train.backbone.width * 3
    if "train" in plan.stages:
        found["caption features"] = n_train * _FEATURE_BYTES if train.needs_captions else 0
        found["model and checkpoints"] = training_bytes(train)
    if "evaluate" in plan.stages:
        found["embeddings"] = (n - n_train) * _EMBEDDING_BYTES
        found["rankings"] = n_query * plan.evaluate.top_k * _RANKED_BYTES
    return found


def training_bytes(config: TrainConfig) -> int:
    """Return the bytes of a model, its best epochs and two checkpoints: the older goes when the newer is written."""
    weights = weight_bytes(config)
    copies = 1
    if config.checkpoint_every:
        copies += 2 * _COPIES
    if config.validation.keep == "best":
        copies += 2
    return copies * weights


def weight_bytes(config: TrainConfig) -> int:
    """Return the bytes of a backbone's weights file, or those of its architecture if there is no such file."""
    try:
        file = weights_file(config.backbone)
    except ClipScgiError:
        file = None  # `backbone_problems` reports it
    return _PLAIN_BYTES[config.backbone.name] if file is None else file.stat().st_size


def _has_pixels(plan: Plan) -> bool:
    if not plan.is_indexed:
        return False
    backbone = plan.train.backbone
    pixels = PixelStage(height=backbone.height, width=backbone.width).plan(plan.run)
    return plan.run.store.folder(pixels.stage.name, pixels.fingerprint).is_dir()


def check_output(path: Path, option: str, *, suffixes: tuple[str, ...] = ()) -> None:
    """Raise ConfigError unless the file (or, without `suffixes`, the folder) that `option` names can be written."""
    where = f"{option} {path}"
    if suffixes and path.suffix.lower() not in suffixes:
        example = f"{option} {path.with_suffix(suffixes[0])}"
        raise ConfigError(f"{where}: the name must end in {' or '.join(suffixes)}, such as {example}")
    if suffixes and path.is_dir():
        raise ConfigError(f"{where} is a folder: give the name of a file")
    if not writable(path.parent if suffixes else path):
        raise ConfigError(f"{where} cannot be written: give a path in a folder of your own")


def writable(folder: Path) -> bool:
    """Return True if files can be created in `folder`, or in the place where it has to be created first."""
    there = _existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that `folder` is on, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
