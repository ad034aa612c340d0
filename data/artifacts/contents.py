"""Content digests: the parts of an index or of captions that later stages depend on.

The digest of a whole file would cover too much: training depends neither on file names nor on which captioner wrote a
text. Content digests are computed once, when the artifact is written, and stored in its ``artifact.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactRef
from data.errors import DataError
from data.people import JUNK, is_person
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import TRAIN

IMAGES_FILE: Final = "images.parquet"
SENTENCES_FILE: Final = "sentences.parquet"
CAPTIONS_FILE: Final = "captions.parquet"

AUDITED: Final = (
    "image_path",
    "image_sha256",
    "split",
    "pid",
    "camid",
    "raw_text",
    "status",
    "error",
    "template_id",
    "truncated",
    *(f"attr_{slot}" for slot in SLOTS),
    *(f"conf_{slot}" for slot in SLOTS),
)
"""The columns of captions.parquet that the audit reads; see `audited_columns`."""

Contents = Mapping[str, str]
"""Name of a part -> its digest, 64 hex digits."""


def image_contents(images: ArtifactRef) -> Contents:
    """Return the content digests of an index artifact.

    train: (pid, camid, sha256) of the training images, independent of order. test: the same, with the split, of queries
    and gallery. ranked: the rows of queries and gallery in order, which a ranking lists, with their paths and whether
    each shows a person (this can depend on the training images, see `data.people`). sentences: those of queries and
    gallery in order, with their paths; only for a dataset with sentences.
    """
    return _recorded(images, IMAGES_FILE, contents_of_images)


def caption_contents(captions: ArtifactRef) -> Contents:
    """Return the content digests of a caption artifact.

    train: (pid, camid, sha256, caption) of the training images, independent of order. audit: the columns
    `audited_columns`, in order.
    """
    return _recorded(captions, CAPTIONS_FILE, contents_of_captions)


def contents_of_images(table: pa.Table) -> dict[str, str]:
    """Compute the digests of `image_contents` from the rows of images.parquet."""
    rows = _rows(table, ("split", "path", "pid", "camid", "sha256"))
    persons = is_person([row[0] for row in rows], [row[2] for row in rows]).tolist()
    tested = [row for row in rows if row[0] != TRAIN]
    ranked = [(*row, person) for row, person in zip(rows, persons, strict=True) if row[0] != TRAIN]
    return {
        "train": _digest(sorted(row[2:] for row in rows if row[0] == TRAIN and row[2] != JUNK)),
        "test": _digest(sorted((row[0], *row[2:]) for row in tested)),
        "ranked": _digest(ranked),
    }


def contents_of_sentences(images: pa.Table, sentences: pa.Table) -> dict[str, str]:
    """Compute the digest ``sentences`` of `image_contents` from the rows of images.parquet and sentences.parquet."""
    tested = {path for split, path in _rows(images, ("split", "path")) if split != TRAIN}
    rows = _rows(sentences, ("image_path", "number", "sentence"))
    return {"sentences": _digest(row for row in rows if row[0] in tested)}


def contents_of_captions(table: pa.Table) -> dict[str, str]:
    """Compute the digests of `caption_contents` from the rows of captions.parquet."""
    rows = _rows(table, ("split", "pid", "camid", "image_sha256", "caption"))
    trained = [(*row[1:-1], caption_text(row[-1])) for row in rows if row[0] == TRAIN and row[1] != JUNK]
    return {"train": _digest(sorted(trained)), "audit": _digest(_rows(table, audited_columns(table.column_names)))}


def audited_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that the audit reads from a captions.parquet with the columns `names`."""
    return [*AUDITED, *(name for name in names if name == LABEL.name)]


def caption_text(caption: str | None) -> str:
    """Return the text that training reads from the column caption; empty if the value is missing."""
    return (caption or "").strip()


def _recorded(ref: ArtifactRef, file: str, compute: Callable[[pa.Table], dict[str, str]]) -> Contents:
    """Return the digests stored in artifact.json; compute them from `file` if the artifact was written without any.

    Raises DataError when the file cannot be read.
    """
    kept = ref.contents()
    if kept:
        return kept
    try:
        return compute(pq.read_table(ref.folder / file))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{ref.folder / file} cannot be read ({error}); delete its folder and run the {ref.stage} stage again"
        ) from error


def _rows(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _digest(rows: Iterable[tuple[Any, ...]]) -> str:
    # Values are text, integers, booleans, and float32 read as float64: their JSON is exact. Confidences may be
    # infinite, which json writes as Infinity.
    return digest_bytes(json.dumps(list(rows), separators=(",", ":"), ensure_ascii=True).encode())
