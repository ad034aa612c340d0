"""The ``features`` stage: encode the test images with a model, before and after training, in every inference mode.

The evaluation reads its artifact if it exists; the breakdown and the download need it. It is made for these only, since
the features of a large dataset take gigabytes.

Shapes: N test images, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, Produced
from data.device import resolve_device
from data.files import read_json, write_json
from data.progress import ProgressFn
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.evaluate import EvaluateConfig
from reid.evaluation.inputs import EvaluatedModel, config_of, model_identity, tested_images
from reid.inputs.evaluation_rows import evaluation_rows
from reid.inputs.image_rows import ImageRows, Ints
from reid.inputs.pixel_cache import Pixels, PixelStage, load_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from reid.tasks.base import Task

STAGE_VERSION: Final = 1
_ENTRIES: Final = "features.json"
Float32s = NDArray[np.float32]


class Encoded(NamedTuple):
    """The test images as one model and mode encodes them: float32 [N, D], not normalized."""

    model: str
    mode: str
    features_ND: Float32s


class _Encoder(NamedTuple):
    model: str
    mode: str
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
        entries = [(entry.model, entry.mode) for entry in self.encode(run, folder)]
        write_json(folder / _ENTRIES, [list(entry) for entry in entries])
        return Produced()

    def encoded(self, run: RunContext, scratch: Path) -> Iterator[Encoded]:
        """Yield the features from the artifact, or encode the images if it does not exist."""
        found = self.find(run)
        if found is None:
            yield from self.encode(run, scratch)
        else:
            run.store.touch(found)
            yield from load_features(found)

    def encode(self, run: RunContext, folder: Path) -> Iterator[Encoded]:
        """Encode the images with every model and mode, and yield the features as memory maps of files in `folder`."""
        images = evaluation_rows(run.images, self.config).images
        backbone = config_of(self.model).backbone
        pixels = load_pixels(PixelStage(height=backbone.height, width=backbone.width).make(run).ref)
        encoders = list(self._encoders(images))
        for step, encoder in enumerate(encoders):

            def report(done: int, total: int, _: str, step: int = step, encoder: _Encoder = encoder) -> None:
                run.progress(step * total + done, len(encoders) * total, f"{encoder.model} {encoder.mode}")

            out = folder / f"{encoder.model}-{encoder.mode}.npy"
            features = self._features(encoder, pixels, images.position, out=out, progress=report)
            yield Encoded(encoder.model, encoder.mode, features)

    def _encoders(self, images: ImageRows) -> Iterator[_Encoder]:
        """Yield the encoders; an image of a camera that a model does not know fails before any image is encoded."""
        import torch

        from reid.training.checkpoint import load_task, load_untrained

        device = resolve_device(self.config.device, torch.cuda, "evaluate.device")
        tasks = {}
        if self.untrained or not isinstance(self.model, ArtifactRef):
            tasks["untrained"] = load_untrained(config_of(self.model), device)
        if isinstance(self.model, ArtifactRef):
            tasks["trained"] = load_task(self.model.folder, device)
        for name, task in tasks.items():
            for mode in task.encoders():
                yield _Encoder(name, mode, task, task.camera_numbers(images.camid.tolist()))

    def _features(
        self, encoder: _Encoder, pixels: Pixels, indices: Ints, *, out: Path, progress: ProgressFn
    ) -> Float32s:
        import torch

        from reid.inputs.embed import embed

        task = encoder.task
        return embed(
            task.encoders()[encoder.mode],
            pixels,
            indices,
            cameras=encoder.cameras_N,
            batch_size=self.config.batch_size,
            device=next(task.parameters()).device,
            mean=task.preprocess.mean,
            std=task.preprocess.std,
            flip=self.config.flip,
            dtype={"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.precision],
            out=out,
            progress=progress,
        )


def load_features(ref: ArtifactRef) -> Iterator[Encoded]:
    """Yield the features of an artifact of `FeatureStage`, memory-mapped read-only."""
    for model, mode in read_json(ref.folder / _ENTRIES):
        array: Float32s = np.load(ref.folder / f"{model}-{mode}.npy", mmap_mode="r", allow_pickle=False)
        yield Encoded(model, mode, array)
