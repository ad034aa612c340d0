"""Distinct image files embedded batch by batch, decoded ahead in threads. For features files and galleries."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.columns.rejected import Rejected
from data.errors import ConfigError, RejectedRow, counted
from data.images.decode import REASONS, open_indexed
from data.people import UNKNOWN_CAMERA
from data.process.read_ahead import map_ahead
from reid.embedding.embedder import Embedder
from reid.embedding.journal import Float32s
from reid.embedding.table import ImageFile
from reid.inputs.pixel_cache import Pixels, resized


class EmbeddedBatch(NamedTuple):
    """Some distinct images. images, vectors_ND: those that could be opened. rejected: the others, with the reason."""

    images: list[ImageFile]
    vectors_ND: Float32s
    rejected: list[tuple[ImageFile, Rejected]]


class _Opened(NamedTuple):
    """The outcome of opening one image: its pixels, or the reason why it is unusable."""

    image: ImageFile
    pixels: Pixels | None
    reason: str = ""

    def rejected(self) -> Rejected:
        return Rejected(self.image.path, self.reason, REASONS[self.reason])


def embed_distinct(
    embedder: Embedder, copies: Sequence[Sequence[ImageFile]], *, root: Path, mode: str
) -> Generator[EmbeddedBatch, None, None]:
    """Yield the embeddings of distinct images in order, in batches of the embedder's size.

    copies: per image the files with its content; the first that can be opened is embedded. root: absolute folder that
    their paths are relative to. Raises the errors of `Embedder.embed_pixels`.
    """
    with closing(_open_all(embedder, copies, root)) as opened:
        while batch := list(islice(opened, embedder.config.batch_size)):
            usable = [item for item in batch if item.pixels is not None]
            vectors_ND = np.empty((0, 0), np.float32)
            if usable:
                vectors_ND = _embed(embedder, usable, mode)
            refused = [(item.image, item.rejected()) for item in batch if item.pixels is None]
            yield EmbeddedBatch([item.image for item in usable], vectors_ND, refused)


def check_cameras(embedder: Embedder, images: Sequence[ImageFile]) -> None:
    """Raise an error if the model has camera embeddings and the camera of an image is unknown, to us or to it."""
    unknown = [image.path for image in images if image.camid in (None, UNKNOWN_CAMERA)]
    if embedder.needs_cameras and unknown:
        raise ConfigError(
            f"this model has camera embeddings, but the camera is unknown for {counted(len(unknown), 'image')}, "
            f"such as {unknown[0]}: give a manifest with the column camid, or use a model trained with train.sie=0"
        )
    embedder.task.camera_numbers(sorted({image.camid for image in images if image.camid is not None}))


def _embed(embedder: Embedder, usable: Sequence[_Opened], mode: str) -> Float32s:
    pixels = np.stack([item.pixels for item in usable if item.pixels is not None])
    cameras = [item.image.camid or 0 for item in usable] if embedder.needs_cameras else None
    return embedder.embed_pixels(pixels, np.arange(len(pixels)), mode=mode, cameras=cameras)


def _open_all(embedder: Embedder, copies: Sequence[Sequence[ImageFile]], root: Path) -> Generator[_Opened, None, None]:
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

    return map_ahead(decode, copies, threads=threads, ahead=max(2 * embedder.config.batch_size, threads))
