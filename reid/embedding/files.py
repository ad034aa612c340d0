"""Embed the image files of a dataset into features.parquet; a killed run continues, and a rerun embeds only new images.

The embeddings computed so far lie in ``<file>.parts`` beside the result (`reid.embedding.journal`) until it is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from data.columns.rejected import Rejected, RejectedRows
from data.columns.source import BATCH_ROWS, in_blocks
from data.errors import ConfigError
from data.files import full_disk_explained, write_tables
from data.process import locks
from data.progress import ProgressFn, silent
from data.schemas import REJECTED
from reid.embedding.batches import EmbeddedBatch, check_cameras, embed_distinct
from reid.embedding.embedder import JOINT, Embedder
from reid.embedding.images import DistinctImages, ImageFile, ImageFiles
from reid.embedding.journal import Journal
from reid.embedding.known import KeyPlaces, KnownImages, Saver
from reid.embedding.table import (
    GROUP_ROWS,
    Heading,
    has_images,
    read_faults,
    read_heading,
    read_rows,
    write_embeddings,
)

SAVE_SECONDS: Final = 5.0
"""Embeddings are saved at least this often; a killed run loses no more."""


class EmbedFn(Protocol):
    """Embeds distinct images as `reid.embedding.batches.embed_distinct` does."""

    def __call__(
        self, embedder: Embedder, images: DistinctImages, *, root: Path, mode: str
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
    rejected: RejectedRows
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
        images: with the sha256 of their bytes, which is checked when they are opened; an `ImageFiles` holds millions.
        root: absolute folder that their paths are relative to.
        out: the file; replaced if it holds embeddings, also those of another model.
        mode: one of `Embedder.modes`; by default the first.
        rejected: images that are known to be unusable, to be listed too.
        progress: called with (embedded images, all images, note), repeats counted once.
        save_seconds: seconds between two saves.
        embed: embeds the distinct images that are not known yet; by default in this process.

    Raises:
        ConfigError: `out` is something else than embeddings, another process is writing it, the mode does not exist,
            the model is untrained, it needs cameras that the images do not have, or a digest is not a sha256.
        DataError: `out` is damaged, a camera is unknown to the model, or an embedding is not finite.
    """
    mode = embedder.resolve_mode(mode)
    if embedder.model is None:
        raise ConfigError("a file of embeddings names the model by its fingerprint: give a trained model")
    files, unused = ImageFiles.of(images), RejectedRows.of(rejected).in_order()
    check_cameras(embedder, files.paths, files.camids)
    heading = Heading(identity_of(embedder, mode), str(root))
    former = read_heading(out)
    if former == heading and has_images(out, files) and not read_faults(out, heading).any.any():
        _write_rejected(rejected_file(out), unused)
        return Embedded(images=len(files), computed=0, rejected=unused, replaced=False)
    folder = out.with_name(f"{out.name}.parts")
    with full_disk_explained(out.parent, f"{out} could not be written"), _locked(folder, out):
        replaced = former is not None and former.identity != heading.identity
        journal = Journal(folder, heading.identity, embedder.width(mode))
        distinct = DistinctImages.of(files, by_camera=embedder.needs_cameras)
        known = KnownImages(distinct, journal, by_camera=embedder.needs_cameras)
        unusable = _find_known(known, out, None if replaced else former)
        computed = _compute(_Job(embedder, mode, root, known), progress, save_seconds, embed)
        written = write_embeddings(out, heading, known.blocks(GROUP_ROWS))
        everything = unused.joined_in_order(known.rejected())
        _write_rejected(rejected_file(out), everything)
        shutil.rmtree(folder)
    return Embedded(images=written, computed=computed, rejected=everything, replaced=replaced, unusable=unusable)


def _find_known(known: KnownImages, out: Path, former: Heading | None) -> int:
    """Find the images that the journal or `out` has, if `former` is its heading; return the unusable rows of `out`."""
    if former is None and not known.saved:
        return 0
    places = KeyPlaces(known.images, by_camera=known.by_camera)
    known.find(places)
    return 0 if former is None else _take_over(out, former, known, places)


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
    known: KnownImages


def _take_over(out: Path, former: Heading, known: KnownImages, places: KeyPlaces) -> int:
    """Add from `out` to the known images what is wanted and absent; return how many rows of `out` are unusable."""
    unusable = 0
    for rows in read_rows(out, former, by_camera=known.by_camera):
        unusable += int((~rows.usable).sum())
        numbers = places.of(rows.keys)
        numbers[~rows.usable] = -1
        known.add_missing(numbers, rows.vectors_ND)
    return unusable


def _compute(job: _Job, progress: ProgressFn, save_seconds: float, embed: EmbedFn) -> int:
    """Embed what is not known, and return the number of embedded images."""
    known, missing = job.known, job.known.missing()
    total, at, computed = len(known.images), 0, 0
    saver = Saver(known, save_seconds)
    try:
        with closing(embed(job.embedder, known.images[missing], root=job.root, mode=job.mode)) as batches:
            for batch in batches:
                numbers = missing[at : at + len(batch.reasons)]
                usable = batch.reasons == ""
                known.reject(numbers[~usable], batch.reasons[~usable].tolist())
                saver.add(numbers[usable], batch.vectors_ND)
                at, computed = at + len(numbers), computed + int(usable.sum())
                progress(total - len(missing) + at, total, "encoding")
    finally:
        saver.save()
    return computed


def _write_rejected(path: Path, rows: RejectedRows) -> None:
    """Write the rejected images; without any, remove the file of an earlier run."""
    if not len(rows):
        path.unlink(missing_ok=True)
        return
    write_tables(path, in_blocks(rows.batches(), BATCH_ROWS), REJECTED)
