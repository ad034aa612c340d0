"""An object in a store as a seekable file that is read ahead in blocks."""

from __future__ import annotations

import io
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final

from data.errors import RejectedRow
from data.sources import remote

BLOCK: Final = 8 << 20
"""Bytes per request."""
_AHEAD: Final = 4


def open_object(place: Path | str, size: int, *, block: int = BLOCK) -> IO[bytes]:
    """Return an object of `size` bytes as a file. Reading it raises the errors of `data.sources.remote.read_range`.

    Reading on costs one request per block, of which a few are made ahead; going back by more than a block repeats one.
    """
    return io.BufferedReader(_Blocks(place, size, block))


class _Blocks(io.RawIOBase):
    def __init__(self, place: Path | str, size: int, block: int) -> None:
        super().__init__()
        self._place, self._size, self._length, self._at = place, size, block, 0
        self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="read-object")
        self._waiting: dict[int, Future[bytes]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        number, skipped = divmod(self._at, self._length)
        part = self._block(number)[skipped : skipped + len(buffer)]
        if not part:
            raise RejectedRow("changed")
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        for old in [one for one in self._waiting if not number - 1 <= one < number + _AHEAD]:
            self._waiting.pop(old).cancel()
        for one in range(number, min(number + _AHEAD, -(-self._size // self._length))):
            if one not in self._waiting:
                start = one * self._length
                size = min(self._length, self._size - start)
                self._waiting[one] = self._pool.submit(remote.read_range, self._place, start, size)
        return self._waiting[number].result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()
