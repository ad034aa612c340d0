"""Sha256 digests as NumPy arrays of 32 bytes per digest, instead of one text object of 64 digits each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.distinct import equal_runs
from data.people import Mask

WIDTH: Final = 32
"""Bytes of a digest."""
Digests = NDArray[np.bytes_]
"""Digests, [N], type S32. NumPy orders them by their bytes, as the texts are ordered. Single elements lose trailing
zero bytes, so compare arrays and not elements."""

_DIGITS: Final = 2 * WIDTH
_MOST_TEXTS: Final = ((1 << 31) - 1) // _DIGITS  # offsets of 32 bits
_AT_ONCE: Final = 1 << 16
_INVALID: Final = 255
_VALUES: Final = np.full(256, _INVALID, dtype=np.uint8)
_VALUES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)
_TEXTS: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint8).reshape(256, 2)


def digests_of(column: pa.ChunkedArray | pa.Array) -> Digests:
    """Return the digests in a text column of lower-case hexadecimal digits, without nulls.

    Raises ValueError if a value is not a sha256.
    """
    found = np.empty((len(column), WIDTH), dtype=np.uint8)
    at = 0
    for part in _parts(column):
        found[at : at + len(part)] = _decoded(part)
        at += len(part)
    return found.reshape(-1).view(f"S{WIDTH}")


def texts_of(digests: Digests) -> pa.Array:
    """Return the digests as a text column of hexadecimal digits. Raises ValueError for more than 33 million."""
    if len(digests) > _MOST_TEXTS:
        raise ValueError(f"{len(digests):,} digests do not fit into one text column: take at most {_MOST_TEXTS:,}")
    raw = np.ascontiguousarray(digests).view(np.uint8)
    offsets = np.arange(len(digests) + 1, dtype=np.int32) * _DIGITS
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(_TEXTS[raw]))]
    return pa.Array.from_buffers(pa.string(), len(digests), buffers)


def one_text(digests: Digests, place: int) -> str:
    """Return one digest as 64 hexadecimal digits."""
    return digests[place : place + 1].tobytes().hex()


def one_digest(text: str) -> Digests:
    """Return the digest of 64 lower-case hexadecimal digits, [1]. Raises ValueError if `text` is not a sha256."""
    raw = bytes.fromhex(text)
    if raw.hex() != text or len(raw) != WIDTH:
        raise ValueError(f"{text!r} is not a sha256: expected {_DIGITS} lower-case hexadecimal digits")
    return np.frombuffer(raw, dtype=f"S{WIDTH}")


def first_bytes(digests: Digests) -> NDArray[np.uint8]:
    """Return the first byte of each digest."""
    return np.ascontiguousarray(digests).view(np.uint8).reshape(-1, WIDTH)[:, 0]


def heads(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return the first 8 bytes of each digest or of each row of `joined`, as a number that is ordered as they are."""
    return keys.view([("head", ">u8"), ("rest", f"V{keys.itemsize - 8}")])["head"]


def joined(*columns: NDArray[Any]) -> NDArray[np.bytes_]:
    """Return the bytes of each row of some columns of fixed width, [N], to match rows by `positions`."""
    raw = [np.ascontiguousarray(column) for column in columns]
    parts = [column.view(np.uint8).reshape(len(column), column.itemsize) for column in raw]
    width = sum(part.shape[1] for part in parts)
    return np.concatenate(parts, axis=1).reshape(-1).view(f"S{width}")


def numbered(digests: Digests) -> NDArray[np.bytes_]:
    """Return each digest with its number among the equal ones before it, as `joined` bytes."""
    order = np.argsort(digests, kind="stable")
    numbers = np.zeros(len(digests), dtype=np.int64)
    for start, end in equal_runs([digests[order]]):
        numbers[order[start:end]] = np.arange(end - start)
    return joined(digests, numbers)


def first_equal(digests: Digests) -> NDArray[np.int64]:
    """Return for each digest the place of the first one that is equal to it, [N]."""
    order, is_new = in_groups(digests)
    start = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    firsts = np.empty(len(order), dtype=np.int64)
    firsts[order] = order[start]
    return firsts


def in_groups(digests: Digests) -> tuple[NDArray[np.int64], Mask]:
    """Return the places of the digests, sorted, equal ones in their order, and the mask of those that begin a group."""
    first_8 = heads(digests).astype(np.uint64)
    order = np.argsort(first_8, kind="stable")
    first_8 = first_8[order]
    is_new = np.append(True, first_8[1:] != first_8[:-1])[: len(order)]
    followers = np.flatnonzero(~is_new)
    for start in range(0, len(followers), _AT_ONCE):
        some = followers[start : start + _AT_ONCE]
        if (digests[order[some]] != digests[order[some - 1]]).any():  # different digests with one head
            return _in_groups_by_all_bytes(digests)
    return order, is_new


def _in_groups_by_all_bytes(digests: Digests) -> tuple[NDArray[np.int64], Mask]:
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    return order, np.append(True, ordered[1:] != ordered[:-1])


def places(known: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return for each of `wanted` its last place in `known`, in any order, -1 if it is absent."""
    order = np.argsort(known, kind="stable")
    after = np.searchsorted(known, wanted, side="right", sorter=order)
    last = np.append(order, -1)[after - 1]
    return np.where((after > 0) & (np.append(known, b"")[last] == wanted), last, -1)


def positions(known: Digests, wanted: Digests) -> NDArray[np.int64]:
    """Return for each of `wanted` its index in the sorted `known`, -1 if it is absent.

    Fastest if `wanted` is sorted too.
    """
    if not len(known):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.searchsorted(known, wanted)
    at[at == len(known)] = 0
    return np.where(known[at] == wanted, at, -1)


def _parts(column: pa.ChunkedArray | pa.Array) -> Iterator[pa.Array]:
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        for start in range(0, len(chunk), _AT_ONCE):
            yield chunk.slice(start, _AT_ONCE).cast(pa.string())  # other programs write large_string


def _decoded(column: pa.Array) -> NDArray[np.uint8]:
    """Return the bytes of some digests, [N, WIDTH]."""
    _, offsets, content = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    if column.null_count or (np.diff(ends) != _DIGITS).any():
        raise ValueError(f"a value is not a sha256: expected {_DIGITS} hexadecimal digits")
    digits = _VALUES[np.frombuffer(content, dtype=np.uint8)[ends[0] : ends[-1]]].reshape(-1, _DIGITS)
    if (digits == _INVALID).any():
        raise ValueError(f"a value is not a sha256: expected {_DIGITS} lower-case hexadecimal digits")
    return np.bitwise_or(np.left_shift(digits[:, ::2], 4), digits[:, 1::2])
