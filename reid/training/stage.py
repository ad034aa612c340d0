"""The ``train`` stage: images + captions -> model.safetensors, config.json, metrics.jsonl.

Importing this module does not load any model library, so that a cached run stays cheap.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np

from data.artifacts.contents import caption_contents
from data.artifacts.store import ArtifactRef, Produced
from data.files import write_json
from data.process.environment import exact_float32, hidden_variables
from data.stages.images import IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.train import TrainConfig
from reid.config.trained import CONFIG_FILE, RECORDED_FILE, Kept, Provenance, TrainedModel, read_trained
from reid.inputs.captions import caption_features, weights_identity
from reid.inputs.pixel_cache import PixelStage, load_pixels
from reid.inputs.training_rows import TrainingRows, read_rows, training_rows
from reid.models.weights_source import described, resolved
from reid.training.tracking import DATABASE, MlflowTracker, TrackedRun, parameters_of
from reid.training.validation import Validator, ranked_held_out, ranked_test

if TYPE_CHECKING:
    from torch import Tensor

    from reid.inputs.batches import TrainingSet
    from reid.training.trainer import TrainState

STAGE_VERSION: Final = 2
_LIBRARIES: Final = ("torch", "open_clip_torch", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """Train the method of `config` on the train split of the indexed images.

    captions: the caption artifact of the same images; None for methods that do not read captions. launched: whether a
    launcher has started this process together with others (`reid.training.together`); variables of a launcher in the
    environment are ignored otherwise.

    `make` raises ConfigError when captions are not given or too few identities are left for a batch; DataError when the
    train split is empty, the captions belong to other images, or too many images lack a caption; WeightsError when the
    weights of the backbone are unavailable; and DivergedError when a loss term becomes infinite or NaN. A killed run
    continues from its last checkpoint.
    """

    name: ClassVar[str] = "train"
    captions: ArtifactRef | None
    config: TrainConfig
    launched: bool = False

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the trained model depends on.

        These are the bytes and labels of the training images, but neither their paths nor their order, and the texts of
        the captions if the method reads them. Test images are included only if training evaluates on them.
        """
        found, validation, captions = run.images.contents(), self.config.validation, self.captions
        reads = captions is not None and self.config.needs_captions
        return {
            "images": found["train"],
            "test_images": found["test"] if validation.every and validation.images == "test" else None,
            "captions": caption_contents(captions)["train"] if captions is not None and reads else None,
            "config": self.config.identity(),
            "weights": weights_identity(run.store, self.config.backbone, self.config.seed),
            "version": STAGE_VERSION,
            # Before 2, autocast trained with stale weights; float32 was never affected.
            **({} if self.config.precision == "no" else {"autocast": 2}),
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Train the model, and write it with its config.json and its log."""
        import torch

        from reid.tasks.build import build_task
        from reid.training.checkpoint import save_model
        from reid.training.metrics_log import METRICS_FILE
        from reid.training.trainer import fit

        config = self.config
        with hidden_variables(launched=self.launched), exact_float32(torch):
            rows = training_rows(run.images, self.captions, config)
            data, labels = _training_set(run, rows, config)
            texts = _learned_texts(run, data, config)
            task = build_task(config, identities=len(labels.identities), cameras=labels.cameras, texts_CD=texts)
            validate = _validator(run.images, rows, data, config)
            tracker = self._tracker(run, scratch)
            state = fit(
                task,
                data,
                config,
                folder=scratch,
                progress=run.progress,
                validate=validate,
                launched=self.launched,
                tracker=tracker,
            )
            save_model(folder / "model.safetensors", task)
        if recorded := _recorded(config, tracker):
            write_json(folder / RECORDED_FILE, recorded)
        if (scratch / METRICS_FILE).exists():
            shutil.copyfile(scratch / METRICS_FILE, folder / METRICS_FILE)
        write_json(folder / CONFIG_FILE, self._description(run, rows, labels, sorted(task.encoders()), state))
        return Produced()

    def _tracker(self, run: RunContext, scratch: Path) -> MlflowTracker | None:
        """Return what records this training with MLflow. `scratch` has the name of the fingerprint."""
        config = self.config
        if config.tracking == "none":
            return None
        fingerprint, source = scratch.name, self._provenance(run)
        names = ("dataset", "dataset_hash", "version", "images", "captions")
        tags = {name: str(value) for name in names if (value := source[name])}  # type: ignore[literal-required]
        tags |= {"stage": self.name, "fingerprint": fingerprint}
        tags["artifact"] = str(run.store.folder(self.name, fingerprint))
        tracked = TrackedRun(
            uri=config.tracking_uri or f"sqlite:///{run.store.root / DATABASE}",
            name=f"{source['dataset']} {config.method} {fingerprint[:8]}",
            parameters=parameters_of(config),
            tags={f"clip_scgi.{name}": value for name, value in tags.items()},
        )
        return MlflowTracker(tracked, scratch)

    def _description(
        self, run: RunContext, rows: TrainingRows, labels: Labels, modes: list[str], state: TrainState
    ) -> TrainedModel:
        """Return the content of config.json."""
        config = self.config
        return {
            "config": {**config.model_dump(mode="json"), "backbone": resolved(config.backbone).model_dump(mode="json")},
            "identities": labels.identities,
            "cameras": labels.cameras,
            "modes": modes,
            "training": {
                "images": len(rows.trained),
                "identities": len(labels.identities),
                "images_without_caption": rows.uncaptioned,
                "images_held_out": len(rows.held_out),
                "identities_held_out": len(np.unique(rows.held_out.pid)),
                "steps": state.step,
                "kept": _kept(config, state),
            },
            "provenance": self._provenance(run),
        }

    def _provenance(self, run: RunContext) -> Provenance:
        """Return where the model comes from: dataset, captions, weights and library versions."""
        dataset, read = run.images.description, self.captions if self.config.needs_captions else None
        return {
            "dataset": dataset.name,
            "dataset_hash": dataset.dataset_hash,
            "version": dataset.version,
            "images": run.images.ref.fingerprint,
            "captions": None if read is None else read.fingerprint,
            "weights": {
                **weights_identity(run.store, self.config.backbone, self.config.seed),
                **described(self.config.backbone),
            },
            "python": platform.python_version(),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }


def started_from(model: ArtifactRef) -> str:
    """Return a note about a model that started from the CLIP of another train artifact, or an empty text."""
    left_out = read_trained(model.folder)["provenance"]["weights"].get("left_out")
    return f"started from the CLIP of a train artifact, without its {', '.join(sorted(left_out))}" if left_out else ""


class Labels(NamedTuple):
    """The identity of each class number and the camera of each camera number.

    Cameras that occur only in held-out images also get a number: camera embeddings must cover them.
    """

    identities: list[int]
    cameras: list[int]


def _validator(images: IndexedImages, rows: TrainingRows, data: TrainingSet, config: TrainConfig) -> Validator | None:
    if not config.validation.every:
        return None
    ranked = ranked_held_out(rows.held_out) if config.validation.holds_out else ranked_test(read_rows(images))
    return Validator(ranked, data.pixels, config, _device(config))


def _kept(config: TrainConfig, state: TrainState) -> Kept:
    """Return the epoch of the model (from 0), the rule that chose it, and its scores at that epoch if evaluated."""
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


def _recorded(config: TrainConfig, tracker: MlflowTracker | None) -> dict[str, Any]:
    """Return where this training was recorded besides its artifact: "tensorboard" (a folder), "mlflow"."""
    board = {"tensorboard": str(Path(config.tensorboard).absolute())} if config.tensorboard else {}
    run = tracker.recorded() if tracker is not None else {}
    return {**board, **({"mlflow": run} if run else {})}


def _training_set(run: RunContext, rows: TrainingRows, config: TrainConfig) -> tuple[TrainingSet, Labels]:
    from reid.inputs.batches import TrainingSet

    backbone = config.backbone
    cache = PixelStage(height=backbone.height, width=backbone.width).make(run)
    used = rows.trained
    identities, labels = np.unique(used.pid, return_inverse=True)
    cameras = np.union1d(used.camid, rows.held_out.camid)
    features = None
    if config.needs_captions:
        features = caption_features(run, rows.captions, config=backbone, seed=config.seed, device=_device(config))
    data = TrainingSet(
        pixels=load_pixels(cache.ref),
        positions_N=used.position,
        labels_N=labels,
        cameras_N=np.searchsorted(cameras, used.camid),
        caption_rows_N=None if features is None else features.rows_N,
        captions_MD=None if features is None else features.features_MD,
    )
    return data, Labels(identities.tolist(), cameras.tolist())


def _learned_texts(run: RunContext, data: TrainingSet, config: TrainConfig) -> Tensor | None:
    """Return the text features of CLIP-ReID's learned prompts (its first stage), or None for other methods."""
    if config.method != "clip_reid":
        return None
    from reid.training.prompt_learning import PromptStage, load_texts

    stage = PromptStage(
        config=config,
        pixels=data.pixels,
        positions_M=data.positions_N,
        labels_M=data.labels_N,
        device=_device(config),
    )
    return load_texts(stage.make(run).ref)


def _device(config: TrainConfig) -> str:
    from reid.training.device import training_device

    return str(training_device(config))
