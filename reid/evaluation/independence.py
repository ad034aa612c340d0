"""Check that an embedding does not depend on the other images of its batch.

Test sets are sorted by identity, so a model that mixes the images of a batch sees the answer. Every image is embedded
alone, and then in batches of other compositions; the embeddings must agree except for rounding.

Shapes: N images, H x W pixels of the model, D values of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.errors import ConfigError, DataError, RejectedRow
from data.images.decode import unusable_image
from data.progress import ProgressFn, silent
from data.stages.images import IndexedImages
from data.synthetic.world import training_sample
from reid.embedding.embedder import Embedder
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import Pixels, resized

TOLERANCE: Final = 1e-4
"""Greatest difference between values of embeddings of length one. Rounding in float32 stays far below."""
IMAGES: Final = 32
"""Number of images to compare."""
BATCH: Final = 16
"""Images per batch, except where all are in one."""
_STRANGERS: Final = 12
"""Images of noise in a batch "with other company"."""
_SEED: Final = 77_000

Ints = NDArray[np.int64]


class Sample(NamedTuple):
    """Images to check a model with. pixels: uint8 [N, H, W, 3]. cameras: None if the model does not need them."""

    paths: Sequence[str]
    pixels: Pixels
    cameras: Sequence[int] | None


class Difference(NamedTuple):
    """Result of one arrangement.

    largest: greatest difference of a value from the embedding of the same image alone. path: that image. problem: why
    images cannot be embedded in this arrangement; `largest` is then infinite.
    """

    arrangement: str
    largest: float
    path: str
    problem: str = ""

    def passes(self, tolerance: float = TOLERANCE) -> bool:
        """Return True if the embeddings agree."""
        return self.largest <= tolerance


def drawn_sample(embedder: Embedder, count: int = IMAGES) -> Sample:
    """Return drawn people, four images each, in random order, seen by the cameras that the model knows."""
    shape = embedder.task.preprocess
    samples = [training_sample(_SEED, at) for at in np.random.default_rng(_SEED).permutation(count).tolist()]
    pixels = [resized(Image.fromarray(sample.image), shape.height, shape.width) for sample in samples]
    paths = [f"drawn/{sample.identity:04d}_{sample.index:04d}.png" for sample in samples]
    known = embedder.task.camera_ids_K.tolist() if embedder.needs_cameras else []
    return Sample(paths, np.stack(pixels), [known[at % len(known)] for at in range(count)] if known else None)


def indexed_sample(embedder: Embedder, images: IndexedImages, count: int = IMAGES) -> Sample:
    """Return the first images of the gallery (or else of the dataset) by path, in random order.

    Raises DataError if one of them is unusable, or if the model does not know one of their cameras.
    """
    rows, shape = read_rows(images), embedder.task.preprocess
    gallery = rows.of_split("gallery")
    chosen = rows.take(np.random.default_rng(_SEED).permutation((gallery if len(gallery) else rows.position)[:count]))
    shown = map(chosen.row, range(len(chosen)))
    pixels = [resized(_open(images, image.path, image.sha256), shape.height, shape.width) for image in shown]
    return Sample(chosen.path.tolist(), np.stack(pixels), chosen.camid.tolist() if embedder.needs_cameras else None)


def _open(images: IndexedImages, path: str, sha256: str) -> Image.Image:
    try:
        return images.open(path, sha256)
    except RejectedRow as rejected:
        raise unusable_image(f"{images.root / path}", rejected) from rejected


def check_independence(
    embedder: Embedder, sample: Sample, *, mode: str | None = None, progress: ProgressFn = silent
) -> list[Difference]:
    """Return how far the embeddings of each arrangement differ from those of the images alone, in one mode.

    progress: called with (finished arrangements, all arrangements, name of the next).

    Raises:
        ConfigError: fewer than two images, or the model does not have the mode.
        DataError: an embedding is not finite, or all images have the same embedding, which proves nothing.
    """
    if len(sample.paths) < 2:
        raise ConfigError("the check compares batches of images: give at least two images")
    check = _Check(embedder, sample, embedder.resolve_mode(mode))
    singles = [np.array([at]) for at in range(len(sample.paths))]
    arrangements = {"alone, again": singles, **dict(_arrangements(sample.paths))}
    steps = 1 + len(arrangements)
    progress(0, steps, "alone")
    try:
        alone_ND = np.concatenate([check.embed(single) for single in singles])
    except ValueError as error:
        return [Difference("alone", np.inf, sample.paths[0], " ".join(str(error).split()))]
    found = []
    for step, (name, batches) in enumerate(arrangements.items(), 1):
        progress(step, steps, name)
        found.append(check.difference(name, batches, alone_ND))
    progress(steps, steps, "done")
    if not np.ptp(alone_ND, axis=0).any() and not any(one.largest for one in found):
        raise DataError("all images have the same embedding, so this check proves nothing; train the model again")
    return found


def _arrangements(paths: Sequence[str]) -> Iterator[tuple[str, list[Ints]]]:
    """Yield names and batches of positions; those from N on are images of noise."""
    rng, count = np.random.default_rng(_SEED), len(paths)
    yield "in one batch", [np.arange(count)]
    yield "shuffled", _batches(rng.permutation(count), BATCH)
    yield "sorted by path", _batches(np.argsort(np.array(paths), kind="stable"), BATCH)
    strangers = count + np.arange(_STRANGERS)
    few = _batches(rng.permutation(count), BATCH - _STRANGERS)
    yield "with other company", [rng.permutation(np.concatenate([batch, strangers])) for batch in few]


def _batches(order: Ints, size: int) -> list[Ints]:
    return [order[start : start + size] for start in range(0, len(order), size)]


class _Check:
    """The model in one mode, with the sample and the images of noise behind it."""

    def __init__(self, embedder: Embedder, sample: Sample, mode: str) -> None:
        noise = np.random.default_rng(_SEED).integers(0, 256, (_STRANGERS, *sample.pixels.shape[1:]), np.uint8)
        self._pixels = np.concatenate([sample.pixels, noise])
        self._cameras = None if sample.cameras is None else [*sample.cameras, *[sample.cameras[0]] * _STRANGERS]
        whole = embedder.config.model_copy(update={"batch_size": len(self._pixels)})
        self._embedder = Embedder(embedder.task, embedder.model, whole, embedder.device)
        self._paths, self._mode = sample.paths, mode

    def embed(self, batch: Ints) -> NDArray[np.float32]:
        """Return the embeddings of one batch."""
        cameras = None if self._cameras is None else [self._cameras[at] for at in batch.tolist()]
        return self._embedder.embed_pixels(self._pixels, batch, mode=self._mode, cameras=cameras)

    def difference(self, name: str, batches: Sequence[Ints], alone_ND: NDArray[np.float32]) -> Difference:
        """Return the greatest difference in `batches`, and the image that has it."""
        largest, path = 0.0, ""
        for batch in batches:
            own = np.flatnonzero(batch < len(alone_ND))
            gaps = np.abs(self.embed(batch)[own] - alone_ND[batch[own]]).max(axis=1)
            if gaps.max() >= largest:
                largest, path = float(gaps.max()), self._paths[int(batch[own[gaps.argmax()]])]
        return Difference(name, largest, path)
