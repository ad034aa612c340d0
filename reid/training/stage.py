"""The ``train`` stage: images + captions -> model.safetensors, config.json, metrics.jsonl.

Importing this module loads no model library, so a cached rerun stays cheap.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from data.artifacts.contents import caption_contents, image_contents
from data.artifacts.store import ArtifactRef, ArtifactStore, Made, fingerprint_of
from data.files import read_json, write_json
from data.process.environment import exact_float32, hidden_variables
from data.progress import ProgressFn, silent
from reid.config.train import TrainConfig
from reid.inputs.captions import caption_features, weights_identity
from reid.inputs.pixel_cache import load_pixels, pixels
from reid.inputs.training_rows import TrainingRows, read_rows, training_rows
from reid.models.weights_source import described, resolved
from reid.training.validation import Validator, ranked_held_out, ranked_test

if TYPE_CHECKING:
    from torch import Tensor

    from reid.inputs.batches import TrainingSet
    from reid.training.trainer import TrainState

STAGE: Final = "train"
STAGE_VERSION: Final = 2
_LIBRARIES: Final = ("torch", "open_clip_torch", "accelerate", "numpy", "safetensors")


def train_ingredients(
    store: ArtifactStore, *, images: ArtifactRef, captions: ArtifactRef | None, config: TrainConfig
) -> dict[str, Any]:
    """Return what the trained model depends on.

    Of the training images their bytes and labels, but neither paths nor order; of `captions`, where the method reads
    them, the texts. Test images count only if training evaluates on them.

    Raises:
        WeightsError: the backbone's weights are not to be had.
    """
    found, validation = image_contents(images), config.validation
    return {
        "images": found["train"],
        "test_images": found["test"] if validation.every and validation.images == "test" else None,
        "captions": caption_contents(captions)["train"] if captions is not None and config.needs_captions else None,
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
    launched: bool = False,
) -> Made:
    """Train the method of `config` on the train split of `images`.

    Args:
        store: where artefacts live; a killed run leaves its checkpoints there and goes on from them.
        images: the index artefact.
        captions: the caption artefact of the same images; None for methods that read no captions.
        images_root: the folder that the image paths are relative to.
        config: the run.
        progress: called every few steps with the steps done, the steps in all and the loss.
        launched: this process is one of several that a launcher has started; a launcher's variables in the
            environment alone do not make it one.

    Raises:
        ConfigError: captions are needed and not given, or too few identities for a batch beside those held out.
        DataError: no training images, captions of other images, or too many images without a caption.
        WeightsError: the backbone's weights are not to be had.
        DivergedError: a loss term became infinite or not a number.
    """
    ingredients = train_ingredients(store, images=images, captions=captions, config=config)
    scratch = store.scratch(STAGE, fingerprint_of(STAGE, ingredients))

    def produce(folder: Path) -> None:
        import torch

        with exact_float32(torch):
            _train(
                store,
                folder,
                scratch=scratch,
                images=images,
                captions=captions,
                images_root=images_root,
                config=config,
                progress=progress,
                launched=launched,
            )

    with hidden_variables(launched=launched):
        if launched:
            return _make_together(store, ingredients, produce, config)
        return store.make(STAGE, ingredients, produce)


def _make_together(
    store: ArtifactStore, ingredients: dict[str, Any], produce: Callable[[Path], None], config: TrainConfig
) -> Made:
    """Make the artifact with all processes of a launcher: the first one owns it, the others help.

    The store's lock is taken by the first process alone; the others would wait for it in vain.
    """
    import torch.distributed as dist
    from accelerate import PartialState

    from reid.training.device import training_device

    # Without the flag accelerate would find no GPU and let every process train for itself, and say nothing.
    process = PartialState(cpu=training_device(config).type == "cpu")
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
    launched: bool,
) -> None:
    from reid.tasks.build import build_task
    from reid.training.checkpoint import save_model
    from reid.training.metrics_log import METRICS
    from reid.training.trainer import fit

    rows = training_rows(images, captions, config)
    data, identities, cameras = _training_set(
        store, rows, images=images, images_root=images_root, config=config, progress=progress
    )
    texts = _learned_texts(store, data, images, config, progress)
    task = build_task(config, identities=len(identities), cameras=cameras, texts_CD=texts)
    validate = _validator(images, rows, data, config)
    state = fit(task, data, config, folder=scratch, progress=progress, validate=validate, launched=launched)
    save_model(folder / "model.safetensors", task)
    if (scratch / METRICS).exists():
        shutil.copyfile(scratch / METRICS, folder / METRICS)
    write_json(
        folder / "config.json",
        {
            "config": {**config.model_dump(mode="json"), "backbone": resolved(config.backbone).model_dump(mode="json")},
            "identities": identities,
            "cameras": cameras,
            "modes": sorted(task.encoders()),
            "training": {
                "images": len(rows.trained["path"]),
                "identities": len(identities),
                "images_without_caption": rows.uncaptioned,
                "images_held_out": len(rows.held_out["path"]),
                "identities_held_out": len(set(rows.held_out["pid"])),
                "steps": state.step,
                "kept": _kept(config, state),
            },
            "provenance": _provenance(store, images, captions, config),
        },
    )


def _validator(images: ArtifactRef, rows: TrainingRows, data: TrainingSet, config: TrainConfig) -> Validator | None:
    if not config.validation.every:
        return None
    ranked = ranked_held_out(rows.held_out) if config.validation.holds_out else ranked_test(read_rows(images))
    return Validator(ranked, data.pixels, config, _device(config))


def _kept(config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """Say which epoch the model is (from 0), what it was chosen by, and its measures there if it was evaluated."""
    settings = config.validation
    best = settings.keep == "best"
    measured = state.best if best else state.measured
    return {
        "epoch": int(measured["epoch"]) if measured else state.epoch - 1,
        "rule": settings.keep,
        "chosen_on": settings.images if best else None,
        "measured_on": settings.images if measured else None,
        "measures": {name: value for name, value in measured.items() if name not in ("epoch", "step")},
    }


def _training_set(
    store: ArtifactStore,
    rows: TrainingRows,
    *,
    images: ArtifactRef,
    images_root: Path,
    config: TrainConfig,
    progress: ProgressFn,
) -> tuple[TrainingSet, list[int], list[int]]:
    """Return the training set, the identity of each class number and the camera of each camera number.

    Cameras that only held-out images come from have a number too: a camera embedding must know them.
    """
    from reid.inputs.batches import TrainingSet

    cache = pixels(
        store,
        images=images,
        images_root=images_root,
        height=config.backbone.height,
        width=config.backbone.width,
        progress=progress,
    )
    used = rows.trained
    identities, cameras = sorted(set(used["pid"])), sorted({*used["camid"], *rows.held_out["camid"]})
    features = None
    if config.needs_captions:
        features = caption_features(
            store, used["caption"], config=config.backbone, seed=config.seed, device=_device(config), progress=progress
        )
    data = TrainingSet(
        pixels=load_pixels(cache.ref),
        positions_N=np.array(used["position"], dtype=np.int64),
        labels_N=np.searchsorted(identities, used["pid"]),
        cameras_N=np.searchsorted(cameras, used["camid"]),
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
    from reid.training.prompt_learning import learned_texts

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
    from reid.training.device import training_device

    return str(training_device(config))


def _provenance(
    store: ArtifactStore, images: ArtifactRef, captions: ArtifactRef | None, config: TrainConfig
) -> dict[str, Any]:
    """Return where the model comes from: data set, captions, weights and library versions."""
    dataset = read_json(images.folder / "dataset.json")
    read = captions if config.needs_captions else None
    return {
        "dataset": dataset["name"],
        "dataset_hash": dataset["dataset_hash"],
        "version": dataset["version"],
        "images": images.fingerprint,
        "captions": None if read is None else read.fingerprint,
        "weights": {**weights_identity(store, config.backbone, config.seed), **described(config.backbone)},
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
