"""What the index knows about image files, as columns: 67 bytes per file instead of an object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from data.artifacts.digests import Stamp
from data.columns.digests import WIDTH, Digests, positions, texts_of
from data.images.check import Decoding
from data.images.decode import REASONS
from data.people import Mask

BATCH_ROWS: Final = 1 << 14
_REASONS: Final = ("", *REASONS)
_CODES: Final = {reason: code for code, reason in enumerate(_REASONS)}
_NO_DIGEST: Final = bytes(WIDTH)

Rows = NDArray[np.int64]


class Facts(NamedTuple):
    """The known facts of one file: its `Stamp`, its digest ("" if it could not be read) and its `Decoding`."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    width: int
    height: int
    reason: str
    flat: int

    @property
    def stamp(self) -> Stamp:
        """Size and times that must be unchanged for these facts to hold."""
        return Stamp(self.size, self.mtime_ns, self.ctime_ns)


_COLUMNS: Final = np.dtype(
    [
        *(("size", np.int64), ("mtime_ns", np.int64), ("ctime_ns", np.int64)),
        *(("sha256", f"S{WIDTH}"), ("is_read", np.bool_)),
        *(("width", np.int32), ("height", np.int32), ("reason", np.int8), ("flat", np.bool_)),
    ]
)


@dataclass(frozen=True, eq=False)
class FileFacts(Sequence[Facts]):
    """The `Facts` of each file, [N], in a structured array; an object is made for each one that is asked for."""

    rows: NDArray[np.void]

    @classmethod
    def empty(cls, count: int) -> FileFacts:
        """Return the facts of `count` files of which nothing is known."""
        return cls(np.zeros(count, dtype=_COLUMNS))

    @classmethod
    def of(cls, facts: Sequence[Facts]) -> FileFacts:
        """Return the columns of `facts`, in their order."""
        found = cls.empty(len(facts))
        for row, fact in enumerate(facts):
            found.set(row, fact)
        return found

    @classmethod
    def joined(cls, parts: Iterable[FileFacts]) -> FileFacts:
        """Return the facts of all parts."""
        return cls(np.concatenate([np.empty(0, dtype=_COLUMNS), *(part.rows for part in parts)]))

    def set(self, row: int, fact: Facts) -> None:
        """Store the facts of one file."""
        digest = bytes.fromhex(fact.sha256) if fact.sha256 else _NO_DIGEST
        self.rows[row] = (*fact[:3], digest, bool(fact.sha256), fact.width, fact.height, _CODES[fact.reason], fact.flat)

    def set_stamp(self, row: int, stamp: Stamp) -> None:
        """Store the stamp of a file of which nothing else is known."""
        self.rows[row] = (*stamp, _NO_DIGEST, False, 0, 0, 0, False)

    def stamp(self, row: int) -> Stamp:
        """Return the stamp of one file."""
        size, mtime_ns, ctime_ns, *_ = self.rows[row].item()
        return Stamp(size, mtime_ns, ctime_ns)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Facts: ...
    @overload
    def __getitem__(self, at: slice) -> FileFacts: ...
    def __getitem__(self, at: int | slice) -> Facts | FileFacts:
        """Return the facts of one file, or of some of them."""
        if isinstance(at, slice):
            return FileFacts(self.rows[at])
        row = range(len(self))[at]
        return next(iter(self[row : row + 1]))

    def __iter__(self) -> Iterator[Facts]:
        """Yield the facts of each file; those of a batch are made together."""
        for part in self.batches():
            rows = part.rows
            columns = [rows[name].tolist() for name in ("size", "mtime_ns", "ctime_ns")]
            columns += [
                [text if read else "" for text, read in zip(part.texts(), rows["is_read"].tolist(), strict=True)]
            ]
            columns += [rows[name].tolist() for name in ("width", "height")]
            columns += [[_REASONS[code] for code in rows["reason"].tolist()], rows["flat"].astype(int).tolist()]
            yield from map(Facts._make, zip(*columns, strict=True))

    def __eq__(self, other: object) -> bool:
        """Return True if both have equal facts in the same order."""
        if isinstance(other, FileFacts):
            return np.array_equal(self.rows, other.rows)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def batches(self) -> Iterator[FileFacts]:
        """Yield the facts in parts that share memory with them."""
        for start in range(0, len(self), BATCH_ROWS):
            yield self[start : start + BATCH_ROWS]

    def take(self, rows: Rows | Mask) -> FileFacts:
        """Return the facts of some files. rows: their places in order, or a mask [N]."""
        return FileFacts(self.rows[rows])

    @property
    def digests(self) -> Digests:
        """The sha256 of each file, [N]."""
        return self.rows["sha256"]

    def texts(self) -> list[str]:
        """Return the sha256 of each file as text."""
        texts: list[str] = texts_of(np.ascontiguousarray(self.digests)).to_pylist()
        return texts

    def reasons(self) -> Mask:
        """Return the mask of the files that cannot be decoded."""
        mask: Mask = self.rows["reason"] != 0
        return mask


class Decodings:
    """The decodings of files by their digest, so that equal bytes are decoded once."""

    def __init__(self, *parts: FileFacts) -> None:
        known = [part.rows["is_read"] for part in parts]

        def column(name: str) -> NDArray[Any]:
            values = [part.rows[name][mask] for part, mask in zip(parts, known, strict=True)]
            return np.concatenate([np.empty(0, dtype=_COLUMNS[name]), *values])

        digests = column("sha256")
        order = np.argsort(digests, kind="stable")
        self._digests = digests[order]
        self._columns = [column(name)[order] for name in ("width", "height", "reason", "flat")]

    def get(self, sha256: str) -> Decoding | None:
        """Return the decoding of the bytes with a digest, None if it is unknown."""
        wanted = np.frombuffer(bytes.fromhex(sha256), dtype=f"S{WIDTH}")
        at = int(positions(self._digests, wanted)[0])
        if at < 0:
            return None
        width, height, reason, flat = (int(column[at]) for column in self._columns)
        return Decoding(width, height, _REASONS[reason], flat)


def codes_of_reasons(reasons: Iterable[str]) -> list[int]:
    """Return the code of each reason, as `FileFacts` stores it."""
    return [_CODES[reason] for reason in reasons]
