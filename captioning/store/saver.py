"""Captions on their way to the disk: collected into shards, written by a thread beside the model's work.

A worker that is killed loses at most what it had not yet written: `FLUSH_ROWS` captions or `FLUSH_SECONDS` of work, and
the one shard that was being written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from captioning.store.claims import Claims, bucket_of
from captioning.store.rows import CaptionRow
from captioning.store.store import CaptionStore

FLUSH_ROWS: Final = 256
FLUSH_SECONDS: Final = 5.0


class Saver:
    """Writes rows to `captions` and gives each bucket of `claims` back once all of its images are on disk.

    Close it when the work is over, whether it succeeded or not (`contextlib.closing`).
    """

    def __init__(self, captions: CaptionStore, claims: Claims) -> None:
        self._captions = captions
        self._claims = claims
        self._open: dict[int, set[str]] = {}  # claimed bucket -> its images that are not yet dealt with
        self._rows: list[CaptionRow] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._writing: tuple[Future[Any], list[CaptionRow]] | None = None

    def expect(self, bucket: int, images: set[str]) -> None:
        """Hold the claimed `bucket` until `add` has seen a row of each of `images`, and the rows are on disk."""
        self._open[bucket] = images

    def add(self, rows: Sequence[CaptionRow]) -> None:
        """Take rows over. Those without text end the wait for their image and are not written.

        Raises ClipScgiError when the disk is full.
        """
        self._rows += rows
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._since > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._settle()
        rows, self._rows, self._since = self._rows, [], time.monotonic()
        written = [row for row in rows if row.reply is not None]
        self._writing = self._thread.submit(self._captions.append, written), rows

    def _settle(self) -> None:
        """Wait for the shard being written, and give back the buckets that are complete with it."""
        if self._writing is None:
            return
        (future, rows), self._writing = self._writing, None
        future.result()
        for row in rows:
            bucket = bucket_of(row.image_sha256)
            self._open[bucket].discard(row.image_sha256)
            if not self._open[bucket]:
                del self._open[bucket]
                self._claims.release(bucket)

    def close(self) -> None:
        """Write what is left, and give everything back."""
        try:
            self._flush()
            self._settle()
        finally:
            self._thread.shutdown()
            self._claims.release_all()
