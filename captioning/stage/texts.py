"""Replies of the store as columns of captions.parquet: the tidied text, its attributes and its status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from captioning.attributes.parse import parse_caption
from data.columns.distinct import one_array
from data.slots import SLOTS

ATTRIBUTES: Final = tuple(f"attr_{slot}" for slot in SLOTS)
TIDIED: Final = "tidied"
"""Column of the text with single spaces; null where it is the reply itself."""

_MOST: Final = 1 << 16  # texts whose reading is kept: about 40 MB

_Reading = tuple[str | None, ...]  # `TIDIED`, and the values of SLOTS


class TextReader:
    """Reads replies: each distinct text once while at most `most` are known, and once per batch otherwise."""

    def __init__(self, *, most: int = _MOST) -> None:
        self._most = most
        self._known: dict[str, _Reading] = {}

    def read(self, replies: pa.Table) -> pa.Table:
        """Return rows of the store with the columns `TIDIED` and `ATTRIBUTES`, and the status after parsing."""
        encoded = one_array(replies["raw_text"]).dictionary_encode()
        readings = self._readings(encoded.dictionary.to_pylist())
        for at, name in enumerate((TIDIED, *ATTRIBUTES)):
            values = pa.array([reading[at] for reading in readings], pa.string())
            replies = replies.append_column(name, values.take(encoded.indices))
        unparsed = pc.and_(pc.equal(replies["status"], "ok"), replies["raw_text"].is_valid())
        for name in ATTRIBUTES:
            unparsed = pc.and_(unparsed, replies[name].is_null())
        status = pc.if_else(unparsed, "unparsed", replies["status"])
        return replies.set_column(replies.schema.get_field_index("status"), "status", status)

    def _readings(self, texts: Iterable[str]) -> list[_Reading]:
        found = [self._reading(text) for text in texts]
        if len(self._known) > self._most:
            self._known.clear()
        return found

    def _reading(self, text: str) -> _Reading:
        if text not in self._known:
            tidied = " ".join(text.split())
            slots = parse_caption(tidied)
            self._known[text] = (None if tidied == text else tidied, *(slots[slot] for slot in SLOTS))
        return self._known[text]
