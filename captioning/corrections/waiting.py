"""Corrections that wait to be saved, as lines of a temporary file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Final, NamedTuple

from captioning.corrections.record import Correction, to_line
from data.files import full_disk_explained

BLOCK_BYTES: Final = 1 << 22


class Moment(NamedTuple):
    """A state of a history file. inode: 0 if the file did not exist. lines: number of complete lines."""

    inode: int
    lines: int


class Waiting:
    """Lines to append to a history, at most one per image. made_at: the state of the history before the first one.

    folder: of the temporary file, which has no name and disappears with its process; None for that of the system.
    block_bytes: size of the blocks in which they are read.
    """

    def __init__(self, made_at: Moment, folder: Path | None = None, block_bytes: int = BLOCK_BYTES) -> None:
        self.made_at = made_at
        self.block_bytes = block_bytes
        self._folder = folder or Path(gettempdir())
        self._stream = TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with this object)
        self._count = 0

    def __len__(self) -> int:
        """Return the number of lines."""
        return self._count

    def add(self, entry: Correction) -> None:
        """Add the line of a correction."""
        with full_disk_explained(self._folder, "nothing was imported"):
            self._stream.write(to_line(entry))
        self._count += 1

    def blocks(self) -> Iterator[bytes]:
        """Yield all lines, in blocks that may end within a line."""
        self._stream.seek(0)
        while block := self._stream.read(self.block_bytes):
            yield block

    def lines(self) -> Iterator[bytes]:
        """Yield the lines one by one."""
        self._stream.seek(0)
        yield from self._stream
