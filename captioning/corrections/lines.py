"""The lines of a history file: where each one is and what it is about, in columns, and the line itself on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from captioning.corrections.edits import Kind
from captioning.corrections.record import Correction, from_line
from data.columns.digests import WIDTH, Digests, in_groups, one_digest, one_text
from data.errors import DataError
from data.people import Mask

Ints = NDArray[np.int64]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_CODES: Final = {kind: code for code, kind in enumerate(KINDS)}
_READ_BYTES: Final = 1 << 24
_AT_ONCE: Final = 1 << 13
_MOST_UNSORTED: Final = 1 << 12


class _Line(NamedTuple):
    """What is known of a line without reading it. image: the 32 bytes of the digest."""

    image: bytes
    start: int
    length: int
    revision: int
    kind: int
    applied: bool


_COLUMNS: Final[dict[str, str]] = {
    "image": f"S{WIDTH}",
    "start": "i8",
    "length": "i4",
    "revision": "i4",
    "kind": "u1",
    "applied": "?",
}


class HistoryFile:
    """A history file that was opened: its lines can be read even when another file takes its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        self.inode = os.fstat(self._handle).st_ino

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        return os.pread(self._handle, length, start)

    def entry(self, line: int, content: bytes) -> Correction:
        """Return the correction in a line. line: its number, from 0. Raises DataError for a damaged line."""
        try:
            return from_line(content)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}: line {line + 1} is damaged ({error}); restore the file from a backup, or delete that"
                " line"
            ) from error


class Lines:
    """The complete lines of a history file, at 58 bytes per line in memory.

    Lines are only added, so the columns of the lines that are known stay as they are.
    """

    def __init__(self, file: HistoryFile) -> None:
        self.file = file
        self.end = 0
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(0, kind) for name, kind in _COLUMNS.items()}
        self._order: Ints = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of lines."""
        return self._count

    @property
    def images(self) -> Digests:
        """The digest of the image of each line, [N]."""
        return self._column("image")

    @property
    def revisions(self) -> NDArray[np.int32]:
        """The revision of each line, [N]."""
        return self._column("revision")

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """The place in `KINDS` of the kind of each line, [N]."""
        return self._column("kind")

    @property
    def applied(self) -> Mask:
        """Whether each line had an effect, [N]."""
        return self._column("applied")

    def read_on(self) -> None:
        """Add the complete lines that the file has after the last known one. Raises DataError for a damaged line."""
        size = _READ_BYTES
        while content := self.file.read(self.end, size):
            complete = content[: content.rfind(b"\n") + 1]
            if complete:
                self._add(list(self._parsed(complete)))
                self.end += len(complete)
            elif len(content) < size:
                return  # a line that its writer has not finished
            else:
                size *= 2  # one line is longer

    def of(self, sha256: str) -> Ints:
        """Return the numbers of the lines of an image, in order; none if `sha256` is not a digest."""
        try:
            wanted = one_digest(sha256)
        except ValueError:
            return np.empty(0, dtype=np.int64)
        if self._count - len(self._order) > _MOST_UNSORTED:
            self._order, _ = in_groups(self.images)
        known = len(self._order)
        start, end = (
            int(np.searchsorted(self.images[:known], wanted, side, self._order)[0]) for side in ("left", "right")
        )
        return np.append(self._order[start:end], known + np.flatnonzero(self.images[known:] == wanted))

    def entry(self, line: int) -> Correction:
        """Return the correction in one line. Raises DataError if the line was changed since it was found."""
        start, length = int(self._column("start")[line]), int(self._column("length")[line])
        found = self.file.entry(line, self.file.read(start, length))
        if found.revision != self.revisions[line] or found.sha256 != one_text(self.images, line):
            raise DataError(f"{self.file.path}: line {line + 1} was changed while it was in use; run the command again")
        return found

    def entries(self, lines: Ints) -> Iterator[Correction]:
        """Yield the corrections in some lines, in that order; a few thousand exist at a time."""
        for first in range(0, len(lines), _AT_ONCE):
            some = lines[first : first + _AT_ONCE]
            order = np.argsort(some, kind="stable")
            found = {line: self.entry(line) for line in some[order].tolist()}
            yield from map(found.__getitem__, some.tolist())

    def _column(self, name: str) -> NDArray[Any]:
        return self._columns[name][: self._count]

    def _parsed(self, complete: bytes) -> Iterator[_Line]:
        """Yield what is known of each line of `complete`, which begins at the end of the known lines."""
        start = self.end
        for line, content in enumerate(complete.splitlines(keepends=True), self._count):
            entry = self.file.entry(line, content)
            yield _Line(
                image=bytes.fromhex(entry.sha256),
                start=start,
                length=len(content),
                revision=entry.revision,
                kind=_CODES[entry.kind],
                applied=entry.applied,
            )
            start += len(content)

    def _add(self, found: list[_Line]) -> None:
        count = self._count + len(found)
        for name, values in zip(_COLUMNS, zip(*found, strict=True), strict=True):
            if count > len(self._columns[name]):
                grown = np.empty(max(count, 2 * self._count), dtype=_COLUMNS[name])
                grown[: self._count] = self._column(name)
                self._columns[name] = grown
            self._columns[name][self._count : count] = values
        self._count = count
