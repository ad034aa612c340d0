"""Embedder: a trained model that turns images and sentences into unit vectors. `reid.Embedder` is this class.

Shapes: N images or sentences, D numbers of an embedding, H x W pixels of the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.config import RUNTIME, Config, build_config
from data.device import Device, resolve_device
from data.errors import ConfigError, DataError, counted
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn, silent
from reid.config.evaluate import JOINT
from reid.config.train import TrainConfig
from reid.embedding.find import find_model
from reid.embedding.sources import ImageSource, pixels_of
from reid.inputs.captions import text_features
from reid.inputs.embed import Float32s, embed, embed_batches
from reid.inputs.pixel_cache import RESIZE
from reid.precision import unit_rows
from reid.tasks.base import Encoder, Task
from reid.training.checkpoint import load_task, load_untrained

Precision = Literal["no", "bf16", "fp16"]
_DTYPES: Final[dict[Precision, torch.dtype]] = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class EmbedConfig(Config):
    """How an `Embedder` runs. Only `precision` changes an embedding by more than rounding of float32."""

    device: Device = "auto"
    """auto (the first CUDA device if there is one, else the CPU), cpu, cuda or cuda:N."""
    batch_size: Annotated[int, Field(ge=1), RUNTIME] = 64
    """Images per batch of the encoder."""
    precision: Precision = "no"
    """Mixed precision of the image encoder; "no" is float32. Embeddings are float32 in any case."""


class Embedder:
    """A trained model in evaluation mode. Embeddings are float32 and have length one, so products are cosines.

    Images are embedded in one of its `modes`:

    * ``image``: the retrieval feature of the image tower, which the evaluation ranks by (CLIP-ReID's test feature).
    * ``fused``: the feature of contextual feature fusion (arXiv:2410.09382), if the model has it.
    * ``joint``: CLIP's image feature, for comparisons with the sentences of `embed_texts`.

    Embeddings of different modes or models are not comparable. An embedding does not depend on the other images of a
    call, their order or the batch size, except for rounding.
    """

    def __init__(self, task: Task, model: ArtifactRef | None, config: EmbedConfig, device: str) -> None:
        """Use a loaded task; `load` is the usual way. model: None if untrained. device: its own, "cpu" or "cuda:N"."""
        self.task = task
        self.model = model
        self.config = config
        self.device = device
        self._encoders: dict[str, Encoder] = {**task.encoders(), JOINT: task.encode_joint}

    @classmethod
    def load(
        cls,
        model: ArtifactRef | Path | str,
        *,
        home: Path | str | None = None,
        device: str = "auto",
        batch_size: int = 64,
        precision: Precision = "no",
    ) -> Self:
        """Load a trained model.

        Args:
            model: the train artifact: its reference, its folder (a Path or a text; a copy elsewhere will do), the
                beginning of its fingerprint, or the name of the recipe that trained it. A recipe stands for its newest
                model.
            home: the artifact root for fingerprints and recipes; by default ``CLIP_SCGI_HOME`` or ``./artifacts``.
            device: auto (the first CUDA device if there is one, else the CPU), cpu, cuda or cuda:N.
            batch_size: images per batch of the encoder.
            precision: no (float32), or bf16 or fp16 for the image encoder under autocast, as the evaluation does.
                Embeddings of different precisions have a cosine of 0.999 or more.

        Raises:
            ConfigError: `model` names no model or several, the device does not exist, or another argument is wrong.
            WeightsError: the model is damaged.
        """
        values = {"device": device, "batch_size": batch_size, "precision": precision}
        config = build_config(EmbedConfig, values, "Embedder.load")
        where = resolve_device(config.device, torch.cuda, "device")
        store = ArtifactStore(Path(home)) if home else ArtifactStore.default()
        found = find_model(model, store)
        return cls(load_task(found.folder, where), found, config, where)

    @classmethod
    def untrained(cls, config: TrainConfig, *, device: str = "auto") -> Self:
        """Load the backbone of `config` as it is before training. It has no fingerprint."""
        where = resolve_device(device, torch.cuda, "device")
        return cls(load_untrained(config, where), None, EmbedConfig(device=device), where)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model, 32 hex digits; "" if it is untrained."""
        return "" if self.model is None else self.model.fingerprint

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes of image embeddings; the first is the default."""
        return tuple(self._encoders)

    @property
    def needs_cameras(self) -> bool:
        """True if the model has camera embeddings (SIE), so that it needs the camera of each image."""
        return bool(self.task.sie)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preprocessing of images, as JSON: size in pixels, resize rule, mean and deviation of pixels in 0..1."""
        shape = self.task.preprocess
        values = {"height": shape.height, "width": shape.width, "mean": list(shape.mean), "std": list(shape.std)}
        return {**values, "resize": RESIZE}

    def width(self, mode: str | None = None) -> int:
        """Return D, the number of values of an image embedding in `mode`."""
        return self._widths[self.resolve_mode(mode)]

    def resolve_mode(self, name: str | None) -> str:
        """Return the mode `name`, or the default mode for None. Raises ConfigError if the model does not have it."""
        if name is None:
            return self.modes[0]
        if name not in self._encoders:
            raise ConfigError(f"this model has no mode {name!r}; give one of {', '.join(self.modes)}")
        return name

    def embed_images(
        self,
        images: Iterable[ImageSource],
        *,
        mode: str | None = None,
        cameras: Sequence[int] | NDArray[np.int64] | None = None,
        progress: ProgressFn = silent,
    ) -> Float32s:
        """Return the embeddings of images, float32 [N, D] of length one, in the order of `images`.

        Images are decoded in threads and resized by the rule of the training (the whole image to H x W, bicubic).

        Args:
            images: paths, PIL images, RGB arrays uint8 [H, W, 3] or RGB tensors uint8 [3, H, W] of any size, mixed at
                will; also a whole array [N, H, W, 3] or tensor [N, 3, H, W]. Floating-point pixels are from 0 to 1.
                A PIL image is used as it is; a file is first turned upright.
            mode: one of `modes`; by default the first, ``image``.
            cameras: the camera of each image, [N], as the training data number them; required by a model with camera
                embeddings, ignored by others.
            progress: called after every batch with (embedded images, N, note).

        Raises:
            DataError: an image cannot be used (the message names it and the reason), a camera is unknown to the model,
                or an embedding is not finite.
            ConfigError: a wrong mode, missing cameras, or something that is not an image.
        """
        sources = _listed(images)
        numbers = self._camera_numbers(cameras, len(sources))
        encode = self._unit_encoder(self.resolve_mode(mode))
        if not len(sources):
            return np.empty((0, self.width(mode)), np.float32)
        shape = self.task.preprocess
        with closing(self._decoded(sources)) as batches:
            return embed_batches(
                encode,
                batches,
                len(sources),
                mean=shape.mean,
                std=shape.std,
                cameras=numbers,
                dtype=_DTYPES[self.config.precision],
                progress=progress,
            )

    def embed_pixels(
        self,
        pixels: NDArray[np.uint8],
        indices: NDArray[np.int64],
        *,
        mode: str | None = None,
        cameras: Sequence[int] | NDArray[np.int64] | None = None,
        progress: ProgressFn = silent,
    ) -> Float32s:
        """Return the embeddings of ``pixels[indices]``, as `embed_images` does.

        pixels: uint8 [all images, H, W, 3], already of the model's size, such as `reid.inputs.pixel_cache.load_pixels`
        returns. The other arguments and the errors are those of `embed_images`.
        """
        shape = self.task.preprocess
        return embed(
            self._unit_encoder(self.resolve_mode(mode)),
            pixels,
            indices,
            batch_size=self.config.batch_size,
            device=self.device,
            mean=shape.mean,
            std=shape.std,
            cameras=self._camera_numbers(cameras, len(indices)),
            dtype=_DTYPES[self.config.precision],
            progress=progress,
        )

    def embed_texts(self, texts: Sequence[str], *, mode: str = JOINT, progress: ProgressFn = silent) -> Float32s:
        """Return the embeddings of sentences in CLIP's joint space, float32 [N, D] of length one.

        Compare them with image embeddings of the mode ``joint``, and with no others: the model never learned to place
        sentences in another space.

        Args:
            texts: one or two sentences each, written the way captions are.
            mode: the mode of the image embeddings to compare with; only ``joint`` is accepted.
            progress: called after every batch with (embedded sentences, N, note).

        Raises:
            ConfigError: another mode, or a sentence that is empty or longer than the model reads.
        """
        if mode != JOINT:
            raise ConfigError(
                f"sentences are not comparable with image embeddings of the mode {mode!r}: embed the images with "
                f"mode={JOINT!r}, and compare the sentences with these"
            )
        if isinstance(texts, str):
            raise ConfigError(f"embed_texts takes a list of sentences: write [{texts[:40]!r}]")
        for number, text in enumerate(texts):
            self._check_length(text, "the sentence" if len(texts) == 1 else f"sentence {number}")
        features_ND = text_features(self.task.backbone, texts, progress)
        return _unit(torch.from_numpy(features_ND)).numpy()

    def _check_length(self, text: str, name: str) -> None:
        backbone = self.task.backbone
        n_words, n_most = len(backbone.tokenizer.words(text)) if text.strip() else 0, backbone.context - 2
        if not 0 < n_words <= n_most:
            raise ConfigError(
                f"{name} has {counted(n_words, 'token')}, but this model reads 1 to {n_most}; describe a person in "
                "one or two sentences"
            )

    def _camera_numbers(self, cameras: Sequence[int] | NDArray[np.int64] | None, count: int) -> Tensor | None:
        if not self.needs_cameras:
            return None
        if cameras is None:
            raise ConfigError(
                f"this model has embeddings of the cameras {self.task.camera_ids_K.tolist()}: give the camera of each "
                "image (cameras=), or use a model trained with train.sie=0"
            )
        if len(cameras) != count:
            raise ConfigError(
                f"cameras= has {counted(len(cameras), 'value')} for {counted(count, 'image')}; give one per image"
            )
        return self.task.camera_numbers(cameras)

    def _unit_encoder(self, mode: str) -> Callable[..., Tensor]:
        encode = self._encoders[mode]

        def unit(images_BCHW: Tensor, *cameras: Tensor) -> Tensor:
            return _unit(encode(images_BCHW, *cameras))

        return unit

    def _decoded(self, sources: Sequence[ImageSource]) -> Generator[Tensor, None, None]:
        """Yield the images as batches uint8 [B, 3, H, W] on the device, decoded ahead in threads."""
        size, threads = self.config.batch_size, os.cpu_count() or 1
        shape = self.task.preprocess

        def decode(item: tuple[int, ImageSource]) -> NDArray[np.uint8]:
            number, source = item
            return pixels_of(source, shape, "the image" if len(sources) == 1 else f"image {number}")

        with closing(map_ahead(decode, enumerate(sources), threads=threads, ahead=max(2 * size, threads))) as decoded:
            while batch := list(islice(decoded, size)):
                yield torch.from_numpy(np.stack(batch)).to(self.device).permute(0, 3, 1, 2)

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Mode -> D, from one black image."""
        shape = self.task.preprocess
        black_1CHW = torch.zeros(1, 3, shape.height, shape.width, device=self.device)
        camera_1 = (torch.zeros(1, dtype=torch.long, device=self.device),) if self.needs_cameras else ()
        with torch.inference_mode():
            return {mode: encode(black_1CHW, *camera_1).shape[1] for mode, encode in self._encoders.items()}


def _unit(features_ND: Tensor) -> Tensor:
    if not bool(torch.isfinite(features_ND).all()):
        raise DataError("an embedding is NaN or infinite, so the model is unusable; train again")
    return unit_rows(features_ND)


def _listed(images: Iterable[ImageSource]) -> Sequence[ImageSource]:
    if isinstance(images, str | Path | Image.Image):
        raise ConfigError(f"embed_images takes a list of images, not one {type(images).__name__}: write [image]")
    return images if hasattr(images, "__getitem__") else list(images)  # type: ignore[return-value]
