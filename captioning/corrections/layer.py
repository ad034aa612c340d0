"""Captions with their corrections applied, as a table. Pure functions, for the stage and for pages."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioning.corrections.current import Current
from captioning.corrections.record import Correction
from data.artifacts.contents import caption_texts
from data.columns.digests import digests_of
from data.columns.distinct import one_array
from data.columns.source import RowSource
from data.schemas import CORRECTED, LABEL
from data.slots import SLOTS

_OF_THE_REPLY: Final = ("first_text", "n_replies", "n_tokens", "batch_size", *(f"conf_{slot}" for slot in SLOTS))
"""Columns about the model's reply, which a correction replaces."""


class Counts(NamedTuple):
    """Numbers of images by the kind of their correction. stale: made against another text of the model's."""

    text: int
    slots: int
    wrong: int
    stale: int


def apply_corrections(captions: pa.Table, corrected: Current) -> pa.Table:
    """Return rows of captions.parquet (schemas.CAPTIONS) as schemas.CORRECTED, with the label if they have it.

    corrected: may contain other images, which are ignored.
    """
    schema = CORRECTED.append(LABEL) if LABEL.name in captions.column_names else CORRECTED
    said = caption_texts(one_array(captions["caption"]))
    texts = pc.if_else(pc.equal(said, ""), pa.scalar(None, pa.string()), said)
    count = len(captions)
    added = {
        "source": pa.repeat("model", count),
        "model_text": texts,
        "corrected_by": pa.nulls(count, pa.string()),
        "corrected_at": pa.nulls(count, pa.string()),
        "stale": pa.repeat(False, count),
    }
    columns = {name: captions[name] for name in captions.column_names} | added
    changed: defaultdict[str, dict[int, Any]] = defaultdict(dict)
    for row, entry in _entries(captions, corrected):
        for name, value in _changed(entry, texts[row].as_py()).items():
            changed[name][row] = value
    columns |= {name: _replaced(columns[name], rows, schema.field(name).type) for name, rows in changed.items()}
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _replaced(column: pa.ChunkedArray | pa.Array, values: Mapping[int, Any], kind: pa.DataType) -> pa.Array:
    """Return a column with another value in some rows. values: row -> value."""
    places = np.arange(len(column))
    places[[*values]] = len(column) + np.arange(len(values))
    both = pa.concat_arrays([one_array(column).cast(kind), pa.array([*values.values()], kind)])
    return both.take(pa.array(places))


def _entries(captions: pa.Table, corrected: Current) -> Iterator[tuple[int, Correction]]:
    """Yield the rows that have a correction."""
    places = corrected.places(digests_of(captions["image_sha256"]))
    rows = np.flatnonzero(places >= 0)
    yield from zip(rows.tolist(), corrected.entries(places[rows]), strict=True)


def counts_of(batches: Iterable[pa.Table], corrected: Current) -> Counts:
    """Return how many rows of captions.parquet (columns image_sha256 and caption) `apply_corrections` changes."""
    kinds: Counter[str] = Counter()
    for captions in batches:
        for row, entry in _entries(captions, corrected):
            if entry.kind != "reset":
                text = captions["caption"][row].as_py()
                kinds[entry.kind] += entry.corrects(text)
                kinds["stale"] += entry.is_stale(text)
    return Counts(**{name: kinds[name] for name in Counts._fields})


class CorrectedRows:
    """The rows of captions.parquet with corrections, which are applied batch by batch."""

    def __init__(self, captions: RowSource, corrected: Current) -> None:
        self._captions = captions
        self._corrected = corrected
        has_label = LABEL.name in captions.names
        self.schema = CORRECTED.append(LABEL) if has_label else CORRECTED
        self.names = self.schema.names
        self.n_rows = captions.n_rows

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield columns of the rows, in order; all columns if none is named."""
        names = list(columns) or self.names

        def corrected(rows: pa.Table) -> pa.Table:
            return apply_corrections(rows, self._corrected).select(names)

        yield from map(corrected, self._captions.batches())


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
