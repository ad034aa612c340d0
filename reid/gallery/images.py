"""Images embedded into a gallery, and queries embedded for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from PIL import Image

from data.columns.rejected import Rejected
from data.errors import ConfigError
from data.images.decode import REASONS
from data.progress import ProgressFn, silent
from reid.embedding.batches import EmbeddedBatch, check_cameras, embed_distinct
from reid.embedding.embedder import JOINT, Embedder
from reid.embedding.images import ImageFile
from reid.gallery.entry import Entry, Float32s
from reid.gallery.gallery import Added, distinct, other_camera
from reid.gallery.index import INDEX_FROM, ensure_index
from reid.gallery.layout import Space
from reid.gallery.writer import Writer

SAVE_SECONDS: Final = 5.0
"""New entries are written at least this often; a killed command loses no more."""
_SAVE_ROWS: Final = 8192
_ROOT: Final = Path("/")


@dataclass(frozen=True, kw_only=True)
class AddedImages(Added):
    """Result of `add_images`. rejected: images that are not in the gallery, with the reason."""

    rejected: list[Rejected]


def space_of(embedder: Embedder, mode: str | None = None) -> Space:
    """Return the space of the embeddings of `mode`. Raises ConfigError for another mode or an untrained model."""
    if embedder.model is None:
        raise ConfigError("a gallery names the model by its fingerprint: give a trained model")
    mode = embedder.resolve_mode(mode)
    return Space(model=embedder.fingerprint, mode=mode, width=embedder.width(mode))


def add_images(
    folder: Path,
    embedder: Embedder,
    entries: Sequence[Entry],
    *,
    mode: str | None = None,
    index_from: int = INDEX_FROM,
    save_seconds: float = SAVE_SECONDS,
    progress: ProgressFn = silent,
) -> AddedImages:
    """Add image files to the gallery in `folder`, which is made if it does not exist; embed only new ones.

    Entries are written every few seconds. What `progress` has reported is on disk, however the process ends.

    Args:
        folder: the gallery.
        embedder: a trained model.
        entries: one per file; the bytes are compared with sha256 when the file is opened.
        mode: one of `Embedder.modes`; by default the first.
        index_from: see `reid.gallery.gallery.Gallery.add`.
        save_seconds: seconds between two writes.
        progress: called after every batch with (images that are in the gallery or rejected, all images, note).

    Raises:
        ConfigError: the gallery is of another model or mode, another process is changing it, or the model needs cameras
            that are unknown.
        DataError: the gallery is damaged, a camera is unknown to the model, or an embedding is not finite.
        ClipScgiError: the disk is full; what was reported is kept.
    """
    space = space_of(embedder, mode)
    given = distinct(entries)
    kept = given.entries
    cameras = pa.array([entry.camera for entry in kept], pa.int64())
    check_cameras(embedder, [entry.path for entry in kept], cameras)
    with Writer(folder, space) as writer:
        rows = writer.snapshot.rows_of(pa.array([entry.sha256 for entry in kept], pa.string()))
        moved = other_camera(writer.snapshot, kept, rows) if embedder.needs_cameras else np.zeros(len(kept), np.bool_)
        known = (rows >= 0) & ~moved
        updated = writer.update([entry for entry, old in zip(kept, known, strict=True) if old], rows[known])
        progress(int(known.sum()), len(kept), "added")
        job = _Job(writer, {entry.sha256: int(row) for entry, row in zip(kept, rows, strict=True)}, save_seconds)
        new = [entry for entry, old in zip(kept, known, strict=True) if not old]
        with closing(embed_distinct(embedder, [[_file(entry)] for entry in new], root=_ROOT, mode=space.mode)) as done:
            _save_all(job, done, new, known=int(known.sum()), progress=progress)
        writer.merge()
        index = ensure_index(writer, index_from, progress)
    return AddedImages(
        added=job.added,
        updated=updated + job.replaced,
        unchanged=int(known.sum()) - updated,
        copies=given.copies,
        disagreeing=given.disagreeing,
        index=index,
        rejected=sorted(job.rejected),
    )


@dataclass
class _Job:
    """Embedded entries on their way into the gallery."""

    writer: Writer
    rows: dict[str, int]  # content -> its row, -1 if it is new
    save_seconds: float
    added: int = 0
    replaced: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)
    _vectors: list[Float32s] = field(default_factory=list)
    _saved: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        return len(self._entries) >= _SAVE_ROWS or time.monotonic() - self._saved >= self.save_seconds

    def take(self, entries: Sequence[Entry], vectors_ND: Float32s) -> None:
        self._entries += entries
        self._vectors.append(vectors_ND)

    def save(self) -> None:
        entries, vectors, self._entries, self._vectors = self._entries, self._vectors, [], []
        self._saved = time.monotonic()
        if not entries:
            return
        vectors_ND = np.concatenate(vectors)
        rows = np.array([self.rows[entry.sha256] for entry in entries])
        fresh = rows < 0
        self.writer.append([entry for entry, new in zip(entries, fresh, strict=True) if new], vectors_ND[fresh])
        self.writer.replace_embeddings(rows[~fresh], vectors_ND[~fresh])
        self.writer.update([entry for entry, new in zip(entries, fresh, strict=True) if not new], rows[~fresh])
        self.added += int(fresh.sum())
        self.replaced += int((~fresh).sum())


def _save_all(
    job: _Job, batches: Iterable[EmbeddedBatch], entries: Sequence[Entry], *, known: int, progress: ProgressFn
) -> None:
    """Save `entries`, embedded by `batches`, from time to time; also what is embedded when Ctrl-C stops the command."""
    total, rest = known + len(entries), iter(entries)
    try:
        for batch in batches:
            outcomes = list(zip(islice(rest, len(batch.reasons)), batch.reasons.tolist(), strict=True))
            job.rejected += [Rejected(entry.path, reason, REASONS[reason]) for entry, reason in outcomes if reason]
            if len(batch.vectors_ND):
                job.take([entry for entry, reason in outcomes if not reason], batch.vectors_ND)
            if job.is_due:
                job.save()
            progress(known + job.added + job.replaced + len(job.rejected), total, "added")  # also hears Ctrl-C
    finally:
        job.save()
    progress(total, total, "added")


def _file(entry: Entry) -> ImageFile:
    return ImageFile(entry.path.lstrip("/"), entry.sha256, camid=entry.camera)


def query_embedding(embedder: Embedder, space: Space, query: str | Path | Image.Image) -> Float32s:
    """Return the embedding of a query for a gallery of `space`, float32 [D].

    query: a sentence (str), an image file (Path) or an image. Raises ConfigError if the model is not that of the
    gallery, if a sentence is compared with another mode than joint, is empty or too long, or if the model needs the
    camera of an image; DataError if the image cannot be used.
    """
    if embedder.fingerprint != space.model:
        raise ConfigError(
            f"the gallery has embeddings of {space}, but the model is train/{embedder.fingerprint or 'untrained'}; "
            "give the model of the gallery"
        )
    if isinstance(query, str):
        if space.mode != JOINT:
            raise ConfigError(
                f"sentences are not comparable with the gallery's embeddings of the mode {space.mode}: search with an "
                f"image, or add the images to another gallery with --mode {JOINT}"
            )
        return embedder.embed_texts([query])[0]
    if embedder.needs_cameras:
        raise ConfigError(
            "search: this model has camera embeddings, but the camera of the query image is unknown; search with a "
            "sentence, or use a gallery of a model trained with train.sie=0"
        )
    return embedder.embed_images([query], mode=space.mode)[0]
