"""The ``features`` stage: encode the test images with a model, before and after training, in every inference mode.

One pass of the image tower gives all modes and the joint features, with which sentences are compared. The evaluation
reads the artifact if it exists; the breakdown and the download need it. It is made for these only, since the features
of a large dataset take gigabytes.

Shapes: N test images, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, Produced
from data.device import resolve_device
from data.files import read_json, write_json
from data.progress import ProgressFn, silent
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.evaluate import EvaluateConfig
from reid.evaluation.feature_parts import FeatureParts
from reid.evaluation.inputs import EvaluatedModel, config_of, model_identity, tested_images
from reid.inputs.evaluation_rows import evaluation_rows
from reid.inputs.image_rows import ImageRows, Ints
from reid.inputs.pixel_cache import Pixels, PixelStage, load_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from reid.tasks.base import Task

STAGE_VERSION: Final = 2
"""Artifacts of version 1 lack the joint features."""
_ENTRIES: Final = "features.json"
Float32s = NDArray[np.float32]


class Encoded(NamedTuple):
    """The test images as one model and mode (or `JOINT`) encodes them: float32 [N, D], not normalized."""

    model: str
    mode: str
    features_ND: Float32s


class LoadedModel(NamedTuple):
    """A model in evaluation mode. name: untrained or trained. cameras_N: of the images, None if it needs none."""

    name: str
    task: Task
    cameras_N: Tensor | None


@dataclass(frozen=True, kw_only=True)
class FeatureStage(Stage):
    """Encode queries and gallery. untrained: also with the model as it was before training.

    Writes features.json, the list of models and modes, and one .npy file for each.
    """

    name: ClassVar[str] = "features"
    model: EvaluatedModel
    config: EvaluateConfig
    untrained: bool = True

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the rows of queries and gallery, the model, and the settings of the encoders."""
        return {
            **tested_images(run.images),
            "model": model_identity(self.model, run.store),
            "untrained": self.untrained,
            "flip": self.config.flip,
            "precision": self.config.precision,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the features."""
        entries = [(entry.model, entry.mode) for entry in self.encode(run, folder, self.parts(run, scratch))]
        write_json(folder / _ENTRIES, [list(entry) for entry in entries])
        return Produced()

    def encoded(self, run: RunContext, scratch: Path) -> Iterator[Encoded]:
        """Yield the features from the artifact, or encode the images if it does not exist."""
        found = self.find(run)
        if found is None:
            yield from self.encode(run, scratch, self.parts(run, scratch))
        else:
            run.store.touch(found)
            yield from load_features(found)

    def parts(self, run: RunContext, scratch: Path) -> FeatureParts:
        """Return the parts in which several workers encode the images; one process does without them."""
        rows, models = len(evaluation_rows(run.images, self.config).images.pid), len(self._names())
        return FeatureParts(scratch / f"parts-{STAGE_VERSION}", rows=rows, models=models, batch=self.config.batch_size)

    def prepare(self, run: RunContext) -> None:
        """Make what the workers read: the pixels of the images."""
        self._pixels(run)

    def work(self, run: RunContext, scratch: Path) -> int:
        """Encode, as one of several workers, the parts that no other worker encodes; return the number of images."""
        images, parts = evaluation_rows(run.images, self.config).images, self.parts(run, scratch)
        if not parts.missing():
            return 0
        pixels, models = self._pixels(run), list(self._models(images))

        def encode(model: int, rows: slice) -> Mapping[str, Float32s]:
            numbers = models[model].cameras_N
            here = models[model]._replace(cameras_N=None if numbers is None else numbers[rows])
            return self._features(here, pixels, images.position[rows], None, silent)

        return parts.work(encode, run.progress)

    def encode(self, run: RunContext, folder: Path, parts: FeatureParts) -> Iterator[Encoded]:
        """Encode the images with every model and mode, and yield the features as memory maps of files in `folder`.

        parts: if all of them exist, they are put together instead.
        """
        if not parts.missing():
            for step, name in enumerate(self._names()):
                for mode, features in parts.collect(step, folder, name):
                    yield Encoded(name, mode, features)
            return
        images, pixels = evaluation_rows(run.images, self.config).images, self._pixels(run)
        models = list(self._models(images))
        for step, model in enumerate(models):

            def report(done: int, total: int, _: str, step: int = step, name: str = model.name) -> None:
                run.progress(step * total + done, len(models) * total, name)

            for mode, features in self._features(model, pixels, images.position, folder, report).items():
                yield Encoded(model.name, mode, features)

    def _pixels(self, run: RunContext) -> Pixels:
        backbone = config_of(self.model).backbone
        return load_pixels(PixelStage(height=backbone.height, width=backbone.width).make(run).ref)

    def _names(self) -> list[str]:
        """Return the names of the models: as they were before training, and trained."""
        is_trained = isinstance(self.model, ArtifactRef)
        untrained = ["untrained"] if self.untrained or not is_trained else []
        return [*untrained, *(["trained"] if is_trained else [])]

    def _models(self, images: ImageRows) -> Iterator[LoadedModel]:
        """Yield the models; an image of a camera that one does not know fails before any image is encoded."""
        import torch

        from reid.training.checkpoint import load_task, load_untrained

        device = resolve_device(self.config.device, torch.cuda, "evaluate.device")
        tasks = {}
        if self.untrained or not isinstance(self.model, ArtifactRef):
            tasks["untrained"] = load_untrained(config_of(self.model), device)
        if isinstance(self.model, ArtifactRef):
            tasks["trained"] = load_task(self.model.folder, device)
        for name, task in tasks.items():
            yield LoadedModel(name, task, task.camera_numbers(images.camid))

    def _features(
        self, model: LoadedModel, pixels: Pixels, indices: Ints, folder: Path | None, progress: ProgressFn
    ) -> Mapping[str, Float32s]:
        import torch

        from reid.inputs.embed import embed_modes
        from reid.inputs.loading import load_batches

        task, size = model.task, self.config.batch_size
        chunks = (indices[start : start + size] for start in range(0, len(indices), size))
        return embed_modes(
            task.encode_modes,
            load_batches(pixels, chunks, next(task.parameters()).device),
            len(indices),
            cameras=model.cameras_N,
            mean=task.preprocess.mean,
            std=task.preprocess.std,
            flip=self.config.flip,
            dtype={"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision],
            out=lambda mode: None if folder is None else folder / f"{model.name}-{mode}.npy",
            progress=progress,
        )


def load_features(ref: ArtifactRef) -> Iterator[Encoded]:
    """Yield the features of an artifact of `FeatureStage`, memory-mapped read-only."""
    for model, mode in read_json(ref.folder / _ENTRIES):
        array: Float32s = np.load(ref.folder / f"{model}-{mode}.npy", mmap_mode="r", allow_pickle=False)
        yield Encoded(model, mode, array)
