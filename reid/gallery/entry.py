"""Entry, one image of a gallery, and the columns in which entries are stored and filtered."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.slots import SLOTS
from reid.gallery.times import utc

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]
Kind = Literal["text", "number", "time"]

EMBEDDING: Final = "embedding"
COPIES: Final = "copies"
_CONFIDENCE: Final = "confidence"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One image of a gallery. What is unknown about it is None, or is missing from the mappings.

    path: absolute, where the image was last added from. sha256: of the file's bytes; a gallery has one entry per
    content. time: in UTC, without a time zone. attributes: slot (`data.slots.SLOTS`) -> value. confidences: slot ->
    probability of its value, from 0 to 1. copies: other absolute paths at which the same bytes were added.
    """

    path: str
    sha256: str
    label: str | None = None
    camera: int | None = None
    time: datetime | None = None
    split: str | None = None
    caption: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    confidences: Mapping[str, float] = field(default_factory=dict)
    copies: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All known paths of its bytes."""
        return (self.path, *self.copies)

    @property
    def confidence(self) -> float | None:
        """The least of the confidences; None if there are none."""
        return min(self.confidences.values(), default=None)


class Column(NamedTuple):
    """A column of a gallery. kind: how `reid.gallery.where` compares its values."""

    name: str
    type: pa.DataType
    kind: Kind


SOURCE_COLUMNS: Final = (
    Column("path", pa.string(), "text"),
    Column("sha256", pa.string(), "text"),
    Column("label", pa.string(), "text"),
    Column("camera", pa.int64(), "number"),
    Column("time", pa.timestamp("us"), "time"),
    Column("split", pa.string(), "text"),
)
"""What the source of an image says. A later source replaces what it knows."""
CAPTION_COLUMNS: Final = (
    Column("caption", pa.string(), "text"),
    Column(_CONFIDENCE, pa.float32(), "number"),
    *(Column(slot, pa.string(), "text") for slot in SLOTS),
    *(Column(f"{slot}_{_CONFIDENCE}", pa.float32(), "number") for slot in SLOTS),
)
"""What the caption of an image says. A later caption or attribute replaces them all."""
COLUMNS: Final = (*SOURCE_COLUMNS, *CAPTION_COLUMNS)
KINDS: Final[Mapping[str, Kind]] = {column.name: column.kind for column in COLUMNS}


def schema(width: int | None = None) -> pa.Schema:
    """Return the schema of entries, with the embedding of `width` values as the last column if it is given."""
    fields = [pa.field(column.name, column.type) for column in COLUMNS]
    fields.append(pa.field(COPIES, pa.list_(pa.string())))  # null in galleries of older versions
    if width is not None:
        fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), width)))
    return pa.schema(fields)


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Return entries as a table, one row per entry, without embeddings."""
    columns: dict[str, list[Any]] = {
        "path": [entry.path for entry in entries],
        "sha256": [entry.sha256 for entry in entries],
        "label": [entry.label and normal(entry.label) for entry in entries],
        "camera": [entry.camera for entry in entries],
        "time": [entry.time and utc(entry.time) for entry in entries],
        "split": [entry.split for entry in entries],
        "caption": [entry.caption for entry in entries],
        _CONFIDENCE: [entry.confidence for entry in entries],
    }
    columns |= {slot: [entry.attributes.get(slot) for entry in entries] for slot in SLOTS}
    columns |= {f"{slot}_{_CONFIDENCE}": [entry.confidences.get(slot) for entry in entries] for slot in SLOTS}
    columns[COPIES] = [list(entry.copies) or None for entry in entries]
    return pa.table(columns, schema=schema())


def entries_of(table: pa.Table) -> list[Entry]:
    """Return the rows of a table as entries."""
    return [_entry(row) for row in table.select(schema().names).to_pylist()]


def with_embeddings(table: pa.Table, embeddings_ND: Float32s) -> pa.Table:
    """Return the table of N entries with their embeddings [N, D] as the last column."""
    flat = pa.array(np.ascontiguousarray(embeddings_ND, np.float32).reshape(-1), pa.float32())
    return table.append_column(EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, embeddings_ND.shape[1]))


def normal(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), in which labels are stored and compared."""
    return unicodedata.normalize("NFC", text)


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(
        **{name: row[name] for name in ("path", "sha256", "label", "camera", "time", "split", "caption")},
        attributes={slot: row[slot] for slot in SLOTS if row[slot] is not None},
        confidences={slot: value for slot in SLOTS if (value := row[f"{slot}_{_CONFIDENCE}"]) is not None},
        copies=tuple(row[COPIES] or ()),
    )
