"""Entries from files: features.parquet, and the captions and attributes of captions.parquet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ConfigError, DataError, counted
from data.people import JUNK, UNKNOWN_CAMERA, is_person
from data.slots import SLOTS
from data.splits import GALLERY
from reid.embedding.images import ImageFile
from reid.embedding.table import Faults, Heading, read_embeddings, read_faults, read_heading, read_images
from reid.gallery.entry import Entry, Float32s
from reid.gallery.layout import Space

_KEYS: Final = ("image_sha256", "caption")
_BATCH_ROWS: Final = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a caption says: its text, its attributes (slot -> value), and the probability of each (slot -> 0..1)."""

    caption: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    confidences: Mapping[str, float] = field(default_factory=dict)


class Features(NamedTuple):
    """A features file: the space of its embeddings, and its entries in order."""

    path: Path
    space: Space
    entries: list[Entry]

    def batches(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Float32s]]:
        """Yield `entries`, which replace those of the file in the same order, with their embeddings [N, D]."""
        start = 0
        for vectors_ND in read_embeddings(self.path):
            yield entries[start : start + len(vectors_ND)], vectors_ND
            start += len(vectors_ND)


def read_features(path: Path) -> Features | None:
    """Return the features file at `path`; None if it is another file.

    Raises DataError if it is damaged, or if a row is of another model than its metadata say, not finite, or not of
    length one.
    """
    try:
        heading = read_heading(path)
    except ConfigError:
        return None
    if heading is None:
        return None
    images = read_images(path)
    _check_rows(path, heading, images, read_faults(path, heading))
    return Features(path, _space(heading), entries_of_images(images, Path(heading.root)))


def _check_rows(path: Path, heading: Heading, images: Sequence[ImageFile], faults: Faults) -> None:
    if faults.foreign.any():
        counts = faults.models.items()
        others = ", ".join(f"{count:,} of {f'train/{model}' if model else 'none'}" for model, count in counts)
        raise DataError(
            f"{path} says that its embeddings are of model train/{heading.identity['model']}, but of its "
            f"{counted(len(images), 'row')}, {others}: they are not comparable. Embed the images again with one model "
            "(`clip-scgi embed SOURCE --model MODEL -o FILE`), or add the rows of each model to a gallery of its own"
        )
    if faults.broken.any():
        first = images[int(np.flatnonzero(faults.broken)[0])].path
        raise DataError(
            f"{path}: {counted(int(faults.broken.sum()), 'embedding')} of {len(images):,} not finite or not of length "
            f"one, such as that of {first}; nothing was added. Embed the images again"
        )


def _space(heading: Heading) -> Space:
    identity = heading.identity
    return Space(model=identity["model"], mode=identity["mode"], width=identity["width"])


def entries_of_images(images: Sequence[ImageFile], root: Path) -> list[Entry]:
    """Return entries of the images below `root`. The label is the text of the identity or, without one, its number.

    Junk and distractors have no label. images: of a whole dataset, since that decides what identity 0 means.
    """
    pids = [JUNK if image.pid is None else image.pid for image in images]
    people = is_person([image.split or GALLERY for image in images], pids)
    return [
        Entry(
            path=str(root / image.path),
            sha256=image.sha256,
            label=(image.label or str(image.pid)) if person else None,
            camera=None if image.camid == UNKNOWN_CAMERA else image.camid,
            split=image.split,
        )
        for image, person in zip(images, people.tolist(), strict=True)
    ]


def read_notes(path: Path) -> dict[str, Note]:
    """Return the captions of a Parquet file, by the sha256 of their images. Images without a caption are left out.

    The file has at least the columns image_sha256 and caption, and may have attr_<slot> and conf_<slot> (natural
    logarithm of a probability), as captions.parquet has. Raises ConfigError if it does not exist or is another file.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            absent = [name for name in _KEYS if name not in names]
            if absent:
                raise ConfigError(
                    f"{path} does not have the column(s) {', '.join(absent)}; give a captions.parquet. Found: "
                    f"{', '.join(names[:20])}"
                )
            wanted = [name for name in (*_KEYS, *_attributes("attr"), *_attributes("conf")) if name in names]
            notes = dict[str, Note]()
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted):
                notes |= {row["image_sha256"]: _note(row) for row in batch.to_pylist() if row["caption"] is not None}
            return notes
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"{path} cannot be read as captions ({' '.join(str(error).split())}); give a captions.parquet"
        ) from error


def _attributes(prefix: str) -> list[str]:
    return [f"{prefix}_{slot}" for slot in SLOTS]


def _note(row: Mapping[str, Any]) -> Note:
    attributes = {slot: value for slot in SLOTS if (value := row.get(f"attr_{slot}")) is not None}
    logs = {slot: row.get(f"conf_{slot}") for slot in attributes}
    confidences = {
        slot: min(1.0, math.exp(log)) for slot, log in logs.items() if log is not None and not math.isnan(log)
    }
    return Note(caption=row["caption"], attributes=attributes, confidences=confidences)


def with_notes(entries: Sequence[Entry], notes: Mapping[str, Note]) -> list[Entry]:
    """Return the entries with the captions of `notes`, by sha256; entries without one are unchanged."""
    return [_with_note(entry, notes.get(entry.sha256)) for entry in entries]


def _with_note(entry: Entry, note: Note | None) -> Entry:
    if note is None:
        return entry
    return replace(entry, caption=note.caption, attributes=note.attributes, confidences=note.confidences)
