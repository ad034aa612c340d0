"""Distinct image files embedded batch by batch, decoded ahead in threads. For features files and galleries."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import ConfigError, RejectedRow, counted
from data.images.decode import open_indexed
from data.people import UNKNOWN_CAMERA
from data.process.read_ahead import map_ahead
from reid.embedding.embedder import Embedder
from reid.embedding.images import ImageFile, camera_numbers
from reid.embedding.journal import Float32s
from reid.inputs.pixel_cache import Pixels, resized


class EmbeddedBatch(NamedTuple):
    """The next images in order. reasons: per image why it cannot be opened, or "". vectors_ND: of those that can be."""

    vectors_ND: Float32s
    reasons: NDArray[np.str_]


class _Opened(NamedTuple):
    """The outcome of opening one image: its pixels, or the reason why it is unusable."""

    image: ImageFile
    pixels: Pixels | None
    reason: str = ""


def embed_distinct(
    embedder: Embedder, images: Iterable[Sequence[ImageFile]], *, root: Path, mode: str
) -> Generator[EmbeddedBatch, None, None]:
    """Yield the embeddings of distinct images in order, in batches of the embedder's size.

    images: of each the files with its content; the first that can be opened is embedded. root: absolute folder that
    their paths are relative to. Raises the errors of `Embedder.embed_pixels`.
    """
    with closing(_open_all(embedder, images, root)) as opened:
        while batch := list(islice(opened, embedder.config.batch_size)):
            usable = [item for item in batch if item.pixels is not None]
            vectors_ND = np.empty((0, 0), np.float32)
            if usable:
                vectors_ND = _embed(embedder, usable, mode)
            yield EmbeddedBatch(vectors_ND, np.array([item.reason for item in batch], np.str_))


def check_cameras(embedder: Embedder, paths: Sequence[str], camids: pa.Int64Array) -> None:
    """Raise an error if the model has camera embeddings and the camera of an image is unknown, to us or to it.

    paths, camids: of the images, [N]; null for an unknown camera.
    """
    if not embedder.needs_cameras:
        return
    cameras = camera_numbers(camids)
    unknown = np.flatnonzero(cameras == UNKNOWN_CAMERA)
    if len(unknown):
        raise ConfigError(
            f"this model has camera embeddings, but the camera is unknown for {counted(len(unknown), 'image')}, "
            f"such as {paths[unknown[0]]}: give a manifest with the column camid, or use a model trained with "
            "train.sie=0"
        )
    embedder.task.camera_numbers(np.unique(cameras))


def _embed(embedder: Embedder, usable: Sequence[_Opened], mode: str) -> Float32s:
    pixels = np.stack([item.pixels for item in usable if item.pixels is not None])
    cameras = [item.image.camid or 0 for item in usable] if embedder.needs_cameras else None
    return embedder.embed_pixels(pixels, np.arange(len(pixels)), mode=mode, cameras=cameras)


def _open_all(embedder: Embedder, images: Iterable[Sequence[ImageFile]], root: Path) -> Generator[_Opened, None, None]:
    """Yield the pixels of each distinct image, decoded ahead in threads."""
    shape, threads = embedder.task.preprocess, os.cpu_count() or 1

    def decode(same: Sequence[ImageFile]) -> _Opened:
        reason = ""
        for image in same:  # identical files: the first that can be opened
            try:
                opened = open_indexed(root, image.path, image.sha256)
            except RejectedRow as rejected:
                reason = rejected.reason
            else:
                return _Opened(image, resized(opened, shape.height, shape.width))
        return _Opened(same[0], None, reason)

    return map_ahead(decode, images, threads=threads, ahead=max(2 * embedder.config.batch_size, threads))
