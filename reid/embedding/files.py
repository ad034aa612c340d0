"""Embed the image files of a dataset into features.parquet; a killed run continues, and a rerun embeds only new images.

The embeddings computed so far lie in ``<file>.parts`` beside the result (`reid.embedding.journal`) until it is written.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import ConfigError, RejectedRow
from data.files import full_disk_explained, write_table
from data.images.decode import REASONS, open_indexed
from data.people import UNKNOWN_CAMERA
from data.process import locks
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn, silent
from data.readers.base import Rejected
from data.schemas import REJECTED
from reid.embedding.embedder import JOINT, Embedder
from reid.embedding.journal import Float32s, Journal
from reid.embedding.table import (
    Heading,
    ImageFile,
    read_embeddings,
    read_heading,
    read_images,
    write_features,
)
from reid.inputs.pixel_cache import Pixels, resized

SAVE_SECONDS: Final = 5.0
"""Embeddings are saved at least this often; a killed run loses no more."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Result of `embed_files`.

    images: rows of the file. computed: distinct images that were embedded now; all others were known. rejected: the
    images that are not in the file, with the reason. replaced: True if the file had embeddings of another model or
    mode.
    """

    images: int
    computed: int
    rejected: list[Rejected]
    replaced: bool


def rejected_file(out: Path) -> Path:
    """Return the file beside features file `out` that lists the rejected images."""
    return out.with_name(f"{out.stem}.rejected.parquet")


def embed_files(
    embedder: Embedder,
    images: Sequence[ImageFile],
    *,
    root: Path,
    out: Path,
    mode: str | None = None,
    rejected: Sequence[Rejected] = (),
    progress: ProgressFn = silent,
    save_seconds: float = SAVE_SECONDS,
) -> Embedded:
    """Write features.parquet at `out`: one row per image, in order, with its embedding; and the rejected images beside.

    An image whose bytes `out` or an interrupted run already embedded, with the same model and mode, is not opened.

    Args:
        embedder: the model.
        images: with the sha256 of their bytes, which is checked when they are opened.
        root: absolute folder that their paths are relative to.
        out: the file; replaced if it holds embeddings, also those of another model.
        mode: one of `Embedder.modes`; by default the first.
        rejected: images that are known to be unusable, to be listed too.
        progress: called with (embedded images, all images, note), repeats counted once.
        save_seconds: seconds between two saves.

    Raises:
        ConfigError: `out` is something else than embeddings, another process is writing it, the mode does not exist,
            the model is untrained, or it needs cameras that the images do not have.
        DataError: `out` is damaged, a camera is unknown to the model, or an embedding is not finite.
    """
    mode = embedder.resolve_mode(mode)
    if embedder.model is None:
        raise ConfigError("a file of embeddings names the model by its fingerprint: give a trained model")
    _check_cameras(embedder, images)
    heading = Heading(identity_of(embedder, mode), str(root))
    former = read_heading(out)
    if former == heading and read_images(out) == list(images):
        _write_rejected(rejected_file(out), rejected)
        return Embedded(images=len(images), computed=0, rejected=sorted(rejected), replaced=False)
    folder = out.with_name(f"{out.name}.parts")
    with full_disk_explained(out.parent, f"{out} could not be written"), _locked(folder, out):
        job = _Job(embedder, mode, root, Journal(folder, heading.identity, embedder.width(mode)))
        replaced = former is not None and former.identity != heading.identity
        if former is not None and not replaced:
            _take_over(out, job, {job.key(image) for image in images})
        computed, refused = _compute(job, images, progress, save_seconds)
        kept = [image for image in images if job.key(image) in job.journal]
        lost = [refused[job.key(image)]._replace(path=image.path) for image in images if job.key(image) in refused]
        write_features(out, heading, kept, [job.key(image) for image in kept], job.journal)
        everything = sorted([*rejected, *lost])
        _write_rejected(rejected_file(out), everything)
        shutil.rmtree(folder)
    return Embedded(images=len(kept), computed=computed, rejected=everything, replaced=replaced)


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    lock = locks.try_lock(folder / "lock")
    if lock is None:
        raise ConfigError(f"another process is writing {out}; wait for it, or give another file to write")
    with lock:
        yield


def identity_of(embedder: Embedder, mode: str) -> dict[str, Any]:
    """Return what an embedding depends on besides the image, as JSON."""
    return {
        "model": embedder.fingerprint,
        "mode": mode,
        "comparable_with_texts": mode == JOINT,
        "width": embedder.width(mode),
        "preprocessing": embedder.preprocessing,
    }


class _Job(NamedTuple):
    embedder: Embedder
    mode: str
    root: Path
    journal: Journal

    def key(self, image: ImageFile) -> str:
        return image.key(by_camera=self.embedder.needs_cameras)


class _Opened(NamedTuple):
    """The outcome of opening one image: its pixels, or the reason why it is unusable."""

    image: ImageFile
    pixels: Pixels | None
    reason: str = ""

    def rejected(self) -> Rejected:
        return Rejected(self.image.path, self.reason, REASONS[self.reason])


def _check_cameras(embedder: Embedder, images: Sequence[ImageFile]) -> None:
    unknown = [image.path for image in images if image.camid in (None, UNKNOWN_CAMERA)]
    if embedder.needs_cameras and unknown:
        raise ConfigError(
            f"this model has camera embeddings, but the cameras of {len(unknown)} images are unknown, such as "
            f"{unknown[0]}: give a manifest with the column camid, or use a model trained with train.sie=0"
        )
    embedder.task.camera_numbers(sorted({image.camid for image in images if image.camid is not None}))


def _take_over(out: Path, job: _Job, wanted: set[str]) -> None:
    """Copy from `out` into the journal what is wanted and not there."""
    keys, start = [job.key(image) for image in read_images(out)], 0
    for vectors_ND in read_embeddings(out):
        group = keys[start : start + len(vectors_ND)]
        first = {key: row for row, key in reversed(list(enumerate(group))) if key in wanted and key not in job.journal}
        job.journal.append(list(first), vectors_ND[list(first.values())])
        start += len(vectors_ND)


def _compute(
    job: _Job, images: Sequence[ImageFile], progress: ProgressFn, save_seconds: float
) -> tuple[int, dict[str, Rejected]]:
    """Embed what the journal lacks; return the number of embedded images, and key -> why an image is not."""
    copies: dict[str, list[ImageFile]] = {}
    for image in images:
        copies.setdefault(job.key(image), []).append(image)
    missing = [same for key, same in copies.items() if key not in job.journal]
    done, computed, refused = len(copies) - len(missing), 0, dict[str, Rejected]()
    saver = _Saver(job.journal, save_seconds)
    try:
        with closing(_open_all(job, missing)) as opened:
            while batch := list(islice(opened, job.embedder.config.batch_size)):
                usable = [item for item in batch if item.pixels is not None]
                refused |= {job.key(item.image): item.rejected() for item in batch if item.pixels is None}
                if usable:
                    saver.add([job.key(item.image) for item in usable], _embed(job, usable))
                computed, done = computed + len(usable), done + len(batch)
                progress(done, len(copies), "encoding")
    finally:
        saver.save()
    return computed, refused


class _Saver:
    """Collects embeddings and appends them to the journal every so many seconds."""

    def __init__(self, journal: Journal, seconds: float) -> None:
        self._journal = journal
        self._seconds = seconds
        self._saved = time.monotonic()
        self._keys: list[str] = []
        self._rows: list[Float32s] = []

    def add(self, keys: Sequence[str], rows_ND: Float32s) -> None:
        self._keys += keys
        self._rows.append(rows_ND)
        if time.monotonic() - self._saved >= self._seconds:
            self.save()

    def save(self) -> None:
        if self._keys:
            self._journal.append(self._keys, np.concatenate(self._rows))
        self._keys, self._rows, self._saved = [], [], time.monotonic()


def _embed(job: _Job, usable: Sequence[_Opened]) -> Float32s:
    pixels = np.stack([item.pixels for item in usable if item.pixels is not None])
    cameras = [item.image.camid or 0 for item in usable] if job.embedder.needs_cameras else None
    return job.embedder.embed_pixels(pixels, np.arange(len(pixels)), mode=job.mode, cameras=cameras)


def _open_all(job: _Job, missing: Sequence[Sequence[ImageFile]]) -> Generator[_Opened, None, None]:
    """Yield the pixels of each distinct image, decoded ahead in threads."""
    shape, threads = job.embedder.task.preprocess, os.cpu_count() or 1

    def decode(same: Sequence[ImageFile]) -> _Opened:
        reason = ""
        for image in same:  # identical files: the first that can be opened
            try:
                opened = open_indexed(job.root, image.path, image.sha256)
            except RejectedRow as rejected:
                reason = rejected.reason
            else:
                return _Opened(image, resized(opened, shape.height, shape.width))
        return _Opened(same[0], None, reason)

    return map_ahead(decode, missing, threads=threads, ahead=max(2 * job.embedder.config.batch_size, threads))


def _write_rejected(path: Path, rows: Sequence[Rejected]) -> None:
    columns = {name: [getattr(row, name) for row in rows] for name in REJECTED.names}
    write_table(path, pa.table(columns, schema=REJECTED), REJECTED)
