"""The sha256 of the JSON of many rows, computed batch by batch from Arrow columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns.distinct import content_of, each_distinct, one_array

_AT_ONCE: Final = 1 << 14
_NULL: Final = "null"
# The characters that JSON writes as they are: printable ASCII without the quotation mark and the backslash.
_PLAIN: Final = np.zeros(256, dtype=np.bool_)
_PLAIN[0x20:0x7F] = True
_PLAIN[[0x22, 0x5C]] = False


class RowDigest:
    """The digest of ``json.dumps(rows, separators=(",", ":"))``, in which each row is the list of its values.

    Columns are text, integers, booleans, and float32, whose values are written as the float64 that equals them.
    canonical: write characters beyond ASCII as they are, as `data.artifacts.fingerprint.canonical_json` does.
    """

    def __init__(self, *, canonical: bool = False) -> None:
        self._hasher = hashlib.sha256(b"[")
        self._is_empty = True
        self._quote = _canonical if canonical else json.dumps

    def update(self, table: pa.Table) -> None:
        """Add the rows of `table`, which has at least one column."""
        for start in range(0, table.num_rows, _AT_ONCE):
            part = table.slice(start, _AT_ONCE)
            values = [_json(one_array(column), self._quote) for column in part.columns]
            joined = pc.binary_join_element_wise(*values, ",")
            self.add(pc.binary_join_element_wise("[", joined, "],", ""))

    def add(self, rows: pa.StringArray) -> None:
        """Add the JSON of rows, at least one, each with a comma at its end."""
        if not self._is_empty:
            self._hasher.update(b",")
        self._hasher.update(content_of(rows)[:-1].data)
        self._is_empty = False

    def hexdigest(self) -> str:
        """Return the digest (64 hex digits) of the rows so far."""
        whole = self._hasher.copy()
        whole.update(b"]")
        return whole.hexdigest()


def list_digest(columns: Iterable[pa.ChunkedArray | pa.Array]) -> str:
    """Return the digest of the canonical JSON of the list of all texts (`data.artifacts.fingerprint.digest`)."""
    found = RowDigest(canonical=True)
    for column in columns:
        for start in range(0, len(column), _AT_ONCE):
            part = one_array(column.slice(start, _AT_ONCE)).cast(pa.string())
            found.add(pc.binary_join_element_wise(_quoted(part, _canonical), ",", ""))
    return found.hexdigest()


def _canonical(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(column: pa.Array, quote: Callable[[str], str]) -> pa.Array:
    """Return the JSON of each value of a column as text."""
    if column.null_count == len(column):
        return pa.repeat(_NULL, len(column))
    if pa.types.is_string(column.type):
        text = _quoted(column, quote)
    elif pa.types.is_boolean(column.type):
        text = pc.if_else(column, "true", "false")
    elif pa.types.is_integer(column.type):
        text = column.cast(pa.string())
    else:
        text = _floats(column)
    return text.fill_null(_NULL) if text.null_count else text


def _quoted(column: pa.Array, quote: Callable[[str], str]) -> pa.Array:
    if _PLAIN[content_of(column)].all():
        return pc.binary_join_element_wise('"', column, '"', "")
    return each_distinct(column, quote)


def _floats(column: pa.Array) -> pa.Array:
    """Return the shortest text of each number; compared by their bits, because 0.0 equals -0.0."""
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    bits, at = np.unique(numbers.view(np.int64), return_inverse=True)
    texts = pa.array([json.dumps(number) for number in bits.view(np.float64).tolist()], pa.string())
    return pc.if_else(column.is_valid(), texts.take(pa.array(at)), None)
