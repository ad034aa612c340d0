"""Embed the image files of a dataset into features.parquet; a killed run continues, and a rerun embeds only new images.

The embeddings computed so far lie in ``<file>.parts`` beside the result (`reid.embedding.journal`) until it is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from data.columns.rejected import Rejected
from data.errors import ConfigError
from data.files import full_disk_explained, write_table
from data.process import locks
from data.progress import ProgressFn, silent
from data.schemas import REJECTED
from reid.embedding.batches import EmbeddedBatch, check_cameras, embed_distinct
from reid.embedding.embedder import JOINT, Embedder
from reid.embedding.journal import Float32s, Journal
from reid.embedding.table import (
    Heading,
    ImageFile,
    read_embeddings,
    read_faults,
    read_heading,
    read_images,
    write_features,
)

SAVE_SECONDS: Final = 5.0
"""Embeddings are saved at least this often; a killed run loses no more."""


class EmbedFn(Protocol):
    """Embeds distinct images as `reid.embedding.batches.embed_distinct` does."""

    def __call__(
        self, embedder: Embedder, copies: Sequence[Sequence[ImageFile]], *, root: Path, mode: str
    ) -> Generator[EmbeddedBatch, None, None]:
        """Yield the embeddings in order."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Result of `embed_files`.

    images: rows of the file. computed: distinct images that were embedded now; all others were known. rejected: the
    images that are not in the file, with the reason. replaced: True if the file had embeddings of another model,
    mode or precision. unusable: rows of the file that were of another model than it says, or not of length one, and
    were embedded again if their images are wanted.
    """

    images: int
    computed: int
    rejected: list[Rejected]
    replaced: bool
    unusable: int = 0


def rejected_file(out: Path) -> Path:
    """Return the file beside features file `out` that lists the rejected images, if there are any."""
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
    embed: EmbedFn = embed_distinct,
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
        embed: embeds the distinct images that are not known yet; by default in this process.

    Raises:
        ConfigError: `out` is something else than embeddings, another process is writing it, the mode does not exist,
            the model is untrained, or it needs cameras that the images do not have.
        DataError: `out` is damaged, a camera is unknown to the model, or an embedding is not finite.
    """
    mode = embedder.resolve_mode(mode)
    if embedder.model is None:
        raise ConfigError("a file of embeddings names the model by its fingerprint: give a trained model")
    check_cameras(embedder, images)
    heading = Heading(identity_of(embedder, mode), str(root))
    former = read_heading(out)
    if former == heading and read_images(out) == list(images) and not read_faults(out, heading).any.any():
        _write_rejected(rejected_file(out), rejected)
        return Embedded(images=len(images), computed=0, rejected=sorted(rejected), replaced=False)
    folder = out.with_name(f"{out.name}.parts")
    with full_disk_explained(out.parent, f"{out} could not be written"), _locked(folder, out):
        job = _Job(embedder, mode, root, Journal(folder, heading.identity, embedder.width(mode)))
        replaced = former is not None and former.identity != heading.identity
        unusable = 0
        if former is not None and not replaced:
            unusable = _take_over(out, former, job, {job.key(image) for image in images})
        computed, refused = _compute(job, images, progress, save_seconds, embed)
        kept = [image for image in images if job.key(image) in job.journal]
        lost = [refused[job.key(image)]._replace(path=image.path) for image in images if job.key(image) in refused]
        write_features(out, heading, kept, [job.key(image) for image in kept], job.journal)
        everything = sorted([*rejected, *lost])
        _write_rejected(rejected_file(out), everything)
        shutil.rmtree(folder)
    return Embedded(images=len(kept), computed=computed, rejected=everything, replaced=replaced, unusable=unusable)


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    lock = locks.try_lock(folder / "lock")
    if lock is None:
        raise ConfigError(f"another process is writing {out}; wait for it, or give another file to write")
    with lock:
        yield


def identity_of(embedder: Embedder, mode: str) -> dict[str, Any]:
    """Return what an embedding depends on besides the image, as JSON. Files in float32 do not name the precision."""
    precision = embedder.config.precision
    return {
        **({} if precision == "no" else {"precision": precision}),
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


def _take_over(out: Path, former: Heading, job: _Job, wanted: set[str]) -> int:
    """Copy from `out` into the journal what is wanted and not there; return how many rows of `out` are unusable."""
    keys, start = [job.key(image) for image in read_images(out)], 0
    unusable = read_faults(out, former).any
    for vectors_ND in read_embeddings(out):
        rows = range(start, start + len(vectors_ND))
        first = {
            keys[row]: row - start
            for row in reversed(rows)
            if not unusable[row] and keys[row] in wanted and keys[row] not in job.journal
        }
        job.journal.append(list(first), vectors_ND[list(first.values())])
        start += len(vectors_ND)
    return int(unusable.sum())


def _compute(
    job: _Job, images: Sequence[ImageFile], progress: ProgressFn, save_seconds: float, embed: EmbedFn
) -> tuple[int, dict[str, Rejected]]:
    """Embed what the journal lacks; return the number of embedded images, and key -> why an image is not."""
    copies: dict[str, list[ImageFile]] = {}
    for image in images:
        copies.setdefault(job.key(image), []).append(image)
    missing = [same for key, same in copies.items() if key not in job.journal]
    done, computed, refused = len(copies) - len(missing), 0, dict[str, Rejected]()
    saver = _Saver(job.journal, save_seconds)
    try:
        with closing(embed(job.embedder, missing, root=job.root, mode=job.mode)) as batches:
            for batch in batches:
                refused |= {job.key(image): why for image, why in batch.rejected}
                if batch.images:
                    saver.add([job.key(image) for image in batch.images], batch.vectors_ND)
                computed, done = computed + len(batch.images), done + len(batch.images) + len(batch.rejected)
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


def _write_rejected(path: Path, rows: Sequence[Rejected]) -> None:
    """Write the rejected images; without any, remove the file of an earlier run."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    columns = {name: [getattr(row, name) for row in rows] for name in REJECTED.names}
    write_table(path, pa.table(columns, schema=REJECTED), REJECTED)
