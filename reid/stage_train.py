"""The ``train`` stage: images + captions -> model.safetensors, config.json, metrics.jsonl.

Importing this module loads no model library, so a cached rerun stays cheap.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.parquet as pq

from data.artifacts import ArtifactRef, ArtifactStore, Made, fingerprint_of
from data.errors import ConfigError, DataError
from data.files import read_json, write_json
from data.progress import ProgressFn, silent
from reid.config import TrainConfig
from reid.imagecache import load_pixels, pixels
from reid.text import caption_features, weights_identity

if TYPE_CHECKING:
    from torch import Tensor

    from reid.trainer import TrainingSet

STAGE: Final = "train"
STAGE_VERSION: Final = 1
_LIBRARIES: Final = ("torch", "open_clip_torch", "accelerate", "numpy", "safetensors")
_SHOWN: Final = 5


def train_ingredients(
    store: ArtifactStore, *, images: ArtifactRef, captions: ArtifactRef | None, config: TrainConfig
) -> dict[str, Any]:
    """Return what the trained model depends on. `captions` counts only for methods that read them.

    Raises:
        WeightsError: the backbone's weights are not to be had.
    """
    return {
        "images": images.digests_of("images.parquet"),
        "captions": captions.content if captions is not None and config.reads_captions else None,
        "config": config.identity(),
        "weights": weights_identity(store, config.backbone, config.seed),
        "version": STAGE_VERSION,
    }


def train(
    store: ArtifactStore,
    *,
    images: ArtifactRef,
    captions: ArtifactRef | None,
    images_root: Path,
    config: TrainConfig,
    progress: ProgressFn = silent,
) -> Made:
    """Train the method of `config` on the train split of `images`.

    Args:
        store: where artefacts live; a killed run leaves its checkpoints there and goes on from them.
        images: the index artefact.
        captions: the caption artefact of the same images; None for methods that read no captions.
        images_root: the folder that the image paths are relative to.
        config: the run.
        progress: called every few steps with the steps done, the steps in all and the loss.

    Raises:
        DataError: no training images, captions of other images, or too many images without a caption.
        WeightsError: the backbone's weights are not to be had.
        DivergedError: a loss term became infinite or not a number.
    """
    ingredients = train_ingredients(store, images=images, captions=captions, config=config)
    scratch = store.scratch(STAGE, fingerprint_of(STAGE, ingredients))

    def produce(folder: Path) -> None:
        _train(
            store,
            folder,
            scratch=scratch,
            images=images,
            captions=captions,
            images_root=images_root,
            config=config,
            progress=progress,
        )

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _make_together(store, ingredients, produce)
    return store.make(STAGE, ingredients, produce)


def _make_together(store: ArtifactStore, ingredients: dict[str, Any], produce: Callable[[Path], None]) -> Made:
    """Make the artefact with all processes of `accelerate launch`: the first one owns it, the others help.

    The store's lock is taken by the first process alone; the others would wait for it in vain.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    process = PartialState()
    fingerprint = fingerprint_of(STAGE, ingredients)
    answer = [store.find(STAGE, fingerprint) if process.is_main_process else None]
    dist.broadcast_object_list(answer)
    if answer[0] is not None:
        return Made(ref=answer[0], cached=True)
    if process.is_main_process:
        answer = [store.make(STAGE, ingredients, produce).ref]
    else:
        helper = store.root / "work" / STAGE / f"{fingerprint}.rank{process.process_index}"
        helper.mkdir(parents=True, exist_ok=True)
        produce(helper)
        shutil.rmtree(helper)
    dist.broadcast_object_list(answer)
    assert answer[0] is not None
    return Made(ref=answer[0], cached=False)


def _train(
    store: ArtifactStore,
    folder: Path,
    *,
    scratch: Path,
    images: ArtifactRef,
    captions: ArtifactRef | None,
    images_root: Path,
    config: TrainConfig,
    progress: ProgressFn,
) -> None:
    from reid.build import build_task
    from reid.checkpoint import save_model
    from reid.metricslog import METRICS
    from reid.trainer import fit

    rows = _training_rows(images)
    used = _captioned(rows, captions, config) if config.reads_captions else rows
    data, identities, cameras = _training_set(
        store, used, images=images, images_root=images_root, config=config, progress=progress
    )
    texts = _learned_texts(store, data, images, config, progress)
    task = build_task(config, identities=len(identities), cameras=cameras, texts_CD=texts)
    state = fit(task, data, config, folder=scratch, progress=progress)
    save_model(folder / "model.safetensors", task)
    if (scratch / METRICS).exists():
        shutil.copyfile(scratch / METRICS, folder / METRICS)
    write_json(
        folder / "config.json",
        {
            "config": config.model_dump(mode="json"),
            "identities": identities,
            "cameras": cameras,
            "modes": sorted(task.encoders()),
            "training": {
                "images": len(used["path"]),
                "identities": len(identities),
                "images_without_caption": len(rows["path"]) - len(used["path"]),
                "steps": state.step,
            },
            "provenance": _provenance(store, images, captions, config),
        },
    )


Rows = dict[str, list[Any]]
"""Columns of the training images: position (row in images.parquet), path, sha256, pid, camid and, later, caption."""


def _training_rows(images: ArtifactRef) -> Rows:
    table = pq.read_table(images.folder / "images.parquet", columns=["path", "sha256", "split", "pid", "camid"])
    columns = table.to_pydict()
    chosen = [row for row, split in enumerate(columns["split"]) if split == "train" and columns["pid"][row] >= 0]
    if not chosen:
        raise DataError(f"{images.folder}/images.parquet holds no training images; check the split of the data set")
    rows: Rows = {name: [values[row] for row in chosen] for name, values in columns.items() if name != "split"}
    return {**rows, "position": chosen}


def _captioned(rows: Rows, captions: ArtifactRef | None, config: TrainConfig) -> Rows:
    """Add the column `caption` and leave out images without one, up to the share that `config` allows.

    A caption that could not be parsed or was cut short is a text like any other for CLIP; only an empty one is
    missing. No other caption ever takes its place.
    """
    if captions is None:
        raise ConfigError(f"method {config.method} reads captions: give the caption artefact of these images")
    table = pq.read_table(captions.folder / "captions.parquet", columns=["image_path", "image_sha256", "caption"])
    known = {
        (path, sha256): (caption or "").strip()
        for path, sha256, caption in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    }
    keys = list(zip(rows["path"], rows["sha256"], strict=True))
    unknown = [path for path, sha256 in keys if (path, sha256) not in known]
    if unknown:
        raise DataError(
            f"{captions.folder}/captions.parquet knows nothing of {len(unknown)} training images, such as "
            f"{', '.join(unknown[:_SHOWN])}: it belongs to other images; run the caption stage on these"
        )
    kept = [row for row, key in enumerate(keys) if known[key]]
    missing = len(keys) - len(kept)
    if missing > config.max_uncaptioned * len(keys):
        shown = ", ".join([path for path, sha256 in keys if not known[path, sha256]][:_SHOWN])
        raise DataError(
            f"{missing} of {len(keys)} training images have no caption (such as {shown}), more than "
            f"max_uncaptioned = {config.max_uncaptioned:.0%}; caption them, or raise max_uncaptioned to leave them out"
        )
    return {name: [values[row] for row in kept] for name, values in rows.items()} | {
        "caption": [known[keys[row]] for row in kept]
    }


def _training_set(
    store: ArtifactStore,
    rows: Rows,
    *,
    images: ArtifactRef,
    images_root: Path,
    config: TrainConfig,
    progress: ProgressFn,
) -> tuple[TrainingSet, list[int], list[int]]:
    """Return the training set, the identity of each class number and the camera of each camera number."""
    from reid.trainer import TrainingSet

    cache = pixels(
        store,
        images=images,
        images_root=images_root,
        height=config.backbone.height,
        width=config.backbone.width,
        progress=progress,
    )
    identities, cameras = sorted(set(rows["pid"])), sorted(set(rows["camid"]))
    features = None
    if config.reads_captions:
        features = caption_features(
            store, rows["caption"], config=config.backbone, seed=config.seed, device=_device(config), progress=progress
        )
    data = TrainingSet(
        pixels=load_pixels(cache.ref),
        positions_N=np.array(rows["position"], dtype=np.int64),
        labels_N=np.searchsorted(identities, rows["pid"]),
        cameras_N=np.searchsorted(cameras, rows["camid"]),
        caption_rows_N=None if features is None else features.rows_N,
        captions_MD=None if features is None else features.features_MD,
    )
    return data, identities, cameras


def _learned_texts(
    store: ArtifactStore, data: TrainingSet, images: ArtifactRef, config: TrainConfig, progress: ProgressFn
) -> Tensor | None:
    """Return the features of CLIP-ReID's learned prompts (its first stage), None for other methods."""
    if config.method != "clip_reid":
        return None
    from reid.prompt_learning import learned_texts

    return learned_texts(
        store,
        images=images,
        pixels=data.pixels,
        positions=data.positions_N,
        labels=data.labels_N,
        config=config,
        device=_device(config),
        progress=progress,
    )


def _device(config: TrainConfig) -> str:
    import torch

    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _provenance(
    store: ArtifactStore, images: ArtifactRef, captions: ArtifactRef | None, config: TrainConfig
) -> dict[str, Any]:
    """Return where the model comes from: data set, captions, weights and library versions."""
    dataset = read_json(images.folder / "dataset.json")
    read = captions if config.reads_captions else None
    return {
        "dataset": dataset["name"],
        "dataset_hash": dataset["dataset_hash"],
        "images": images.fingerprint,
        "captions": None if read is None else read.fingerprint,
        "weights": weights_identity(store, config.backbone, config.seed),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
