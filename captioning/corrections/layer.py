"""Captions with their corrections applied, as a table. Pure functions, for the stage and for pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import pyarrow as pa

from captioning.corrections.record import Correction
from data.artifacts.contents import caption_text
from data.schemas import CORRECTED, LABEL
from data.slots import SLOTS

Corrected = Mapping[str, Correction]
"""Image sha256 -> its change in effect (`Corrections.current`)."""

_OF_THE_REPLY: Final = ("first_text", "n_replies", "n_tokens", "batch_size", *(f"conf_{slot}" for slot in SLOTS))
"""Columns about the model's reply, which a correction replaces."""
_ADDED: Final = ("source", "model_text", "corrected_by", "corrected_at", "stale")


class Counts(NamedTuple):
    """Numbers of images by the kind of their correction. stale: made against another text of the model's."""

    text: int
    slots: int
    wrong: int
    stale: int


def apply_corrections(captions: pa.Table, corrected: Corrected) -> pa.Table:
    """Return the rows of captions.parquet (schemas.CAPTIONS) as schemas.CORRECTED, with the label if they have it.

    corrected: may contain other images, which are ignored.
    """
    texts = [caption_text(text) or None for text in captions["caption"].to_pylist()]
    columns: dict[str, list[Any]] = {
        "source": ["model"] * len(texts),
        "model_text": texts,
        "corrected_by": [None] * len(texts),
        "corrected_at": [None] * len(texts),
        "stale": [False] * len(texts),
    }
    for row, sha256 in enumerate(captions["image_sha256"].to_pylist()):
        entry = corrected.get(sha256)
        for name, value in ({} if entry is None else _changed(entry, texts[row])).items():
            if name not in columns:
                columns[name] = captions[name].to_pylist()
            columns[name][row] = value
    schema = CORRECTED.append(LABEL) if LABEL.name in captions.column_names else CORRECTED
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else captions[field.name] for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def counts_of(captions: pa.Table, corrected: Corrected) -> Counts:
    """Return how many rows of `captions` (columns image_sha256 and caption) `apply_corrections` changes."""
    kinds: Counter[str] = Counter()
    for sha256, text in zip(captions["image_sha256"].to_pylist(), captions["caption"].to_pylist(), strict=True):
        entry = corrected.get(sha256)
        if entry is None or entry.kind == "reset":
            continue
        kinds[entry.kind] += entry.corrects(text)
        kinds["stale"] += entry.is_stale(text)
    return Counts(**{name: kinds[name] for name in Counts._fields})


def _changed(entry: Correction, model_text: str | None) -> dict[str, Any]:
    """Return the columns that a correction changes."""
    if entry.kind == "reset":
        return {}
    stale = {"stale": entry.is_stale(model_text)}
    if not entry.corrects(model_text):
        return stale
    slots = entry.slots
    return {
        **dict.fromkeys(_OF_THE_REPLY),
        **{f"attr_{slot}": slots.get(slot) for slot in SLOTS},
        "caption": entry.text,
        "raw_text": entry.text,
        "truncated": False,
        "status": "wrong" if entry.text is None else "ok" if any(slots.values()) else "unparsed",
        "error": f"marked as wrong by {entry.author}" if entry.text is None else None,
        "source": entry.provenance,
        "corrected_by": entry.author,
        "corrected_at": entry.time.isoformat(timespec="seconds"),
        **stale,
    }
