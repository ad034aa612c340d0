"""The ``pixels`` stage: decode every image of a dataset once and resize it for the model.

Writes ``pixels.npy``, uint8 [N, height, width, 3] (RGB) in the order of images.parquet, and ``pixels.json``. The key is
the ordered list of image digests, the size and the resize rule, so renaming a file or changing the split does not
require a new run. Decoding and resizing release the interpreter lock, so threads suffice (two cores: 1.9-2.1x one).
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.artifacts.store import ArtifactRef, Produced
from data.columns.json_rows import list_digest
from data.errors import DataError, RejectedRow, counted
from data.files import read_json, write_json
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn
from data.sources.address import shown
from data.stages.images import ImageDigests, IndexedImages
from data.stages.stage import Ingredients, RunContext, Stage

STAGE_VERSION: Final = 1
RESIZE: Final = "bicubic-antialiased"
"""Resize the whole image to height x width without keeping the aspect ratio, as CLIP-ReID does in training
(``T.Resize([256, 128], 3)``). CLIP-ReID tests on bilinear images; here training and test share one cache and rule."""

Pixels = NDArray[np.uint8]
_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True)
class PixelStage(Stage):
    """Decode every indexed image once; the module docstring describes the files.

    height, width: size of the model input. workers: decoding threads; by default one per core.

    `make` raises DataError when a file is missing, unreadable, or has changed since it was indexed.
    """

    name: ClassVar[str] = "pixels"
    height: int
    width: int
    workers: int | None = None

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the digests of the images in their order, the size and the resize rule."""
        order = list_digest(rows["sha256"] for rows in run.images.batches("sha256"))
        return {"order": order, "size": [self.height, self.width], "resize": RESIZE, "version": STAGE_VERSION}

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write pixels.npy and pixels.json."""
        images = run.images.digests()
        shape = (len(images), self.height, self.width, 3)
        out = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
        _fill(out, images, run.images, self.workers or os.cpu_count() or 1, run.progress)
        out.flush()
        write_json(folder / "pixels.json", {**self.ingredients(run), "images": len(images)})
        return Produced()


def load_pixels(ref: ArtifactRef) -> Pixels:
    """Return the pixels of an artifact of this stage, memory-mapped read-only: uint8 [N, height, width, 3]."""
    array: Pixels = np.load(ref.folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    described = read_json(ref.folder / "pixels.json")
    expected = (described["images"], *described["size"], 3)
    if array.shape != expected or array.dtype != np.uint8:
        raise DataError(
            f"{ref.folder}/pixels.npy is {array.dtype} {array.shape} instead of uint8 {expected}; "
            "delete that folder and run again"
        )
    return array


def resized(image: Image.Image, height: int, width: int) -> Pixels:
    """Return the pixels of an RGB image, uint8 [height, width, 3], by the rule `RESIZE`."""
    pixels: Pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return pixels


def _fill(out: Pixels, rows: ImageDigests, images: IndexedImages, workers: int, progress: ProgressFn) -> None:
    every = max(1, len(rows) // 100)
    problems: list[str] = []
    with closing(_decode_all(out, rows, images, workers)) as decoded:
        for done, problem in enumerate(decoded, start=1):
            if problem:
                problems.append(problem)
            if done % every == 0 or done == len(rows):
                progress(done, len(rows), "decoding")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
        rest = f"\n  - and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{len(problems)} of {counted(len(rows), 'indexed image')} under {shown(images.root)} have changed since "
            f"they were indexed:{listed}{rest}\nRestore these files, or run the index stage again on the folder."
        )


def _decode_all(
    out: Pixels, rows: ImageDigests, images: IndexedImages, workers: int
) -> Generator[str | None, None, None]:
    def decode(index: int) -> str | None:
        path, sha256 = rows.image(index)
        try:
            image = images.open(path, sha256)
        except RejectedRow as rejected:
            return f"{path}: {rejected.reason}"
        out[index] = resized(image, *out.shape[1:3])
        return None

    return map_ahead(decode, range(len(rows)), threads=workers, ahead=4 * workers)
