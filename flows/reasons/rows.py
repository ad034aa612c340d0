"""Rows of the tables that a reason compares, read in batches; a text that is only compared is kept as 16 bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.digests import digests_of, positions
from data.columns.distinct import one_array
from data.columns.source import RowSource
from data.splits import SPLITS

SHORT: Final = 16
"""Bytes of a short digest."""
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Short = NDArray[np.bytes_]
"""Digests of texts or images, [N], type S16."""

_AT_ONCE: Final = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of images.parquet or captions.parquet in some splits. with_paths: the stage depends on file names."""

    source: RowSource
    splits: tuple[str, ...] = SPLITS
    with_paths: bool = True

    def batches(self, *columns: str) -> Iterator[pa.Table]:
        """Yield columns of the rows, in order."""
        splits = pa.array(self.splits)
        for rows in self.source.batches(*dict.fromkeys(["split", *columns])):
            yield rows.filter(pc.is_in(rows["split"], value_set=splits)).select(list(columns))


def short_digests(column: pa.ChunkedArray | pa.Array) -> Short:
    """Return the digest of each text, [N]. Each distinct text is hashed once."""
    encoded = one_array(column).dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=SHORT).digest() for text in texts)
    found: Short = np.frombuffer(digests, dtype=f"S{SHORT}")[encoded.indices.to_numpy()]
    return found


def halves(column: pa.ChunkedArray) -> Short:
    """Return the first half of each digest of an image, [N]."""
    return digests_of(column).astype(f"S{SHORT}")


def concatenated(parts: Iterable[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Return the columns of all parts, one by one, so that no more than one of them is in memory twice."""
    columns = [list(column) for column in zip(*parts, strict=True)]
    return [np.concatenate(columns.pop(0)) for _ in range(len(columns))]


def places(known: Short, wanted: Short) -> Ints:
    """Return for each of `wanted` its place in `known`, whose values are distinct, -1 if it is absent."""
    if np.array_equal(known, wanted):
        return np.arange(len(known))
    order = np.argsort(known, kind="stable")
    in_order, found = known[order], np.empty(len(wanted), dtype=np.int64)
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        its_order = np.argsort(part, kind="stable")  # looking up sorted digests is many times faster
        at = positions(in_order, part[its_order])
        found[start + its_order] = np.where(at < 0, -1, order[at]) if len(order) else -1
    return found


def is_disjoint(known: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> bool:
    """Return True if two columns with rows have no value in common. known: sorted.

    Fast if one of the first values is in both.
    """
    for start in range(0, len(wanted), _AT_ONCE):
        part = np.sort(wanted[start : start + _AT_ONCE])
        at = np.searchsorted(known, part).clip(max=len(known) - 1)
        if len(known) and (known[at] == part).any():
            return False
    return len(known) > 0 and len(wanted) > 0
