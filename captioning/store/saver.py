"""Saving of captions while the model works: rows are collected into shards that a thread writes.

A killed worker loses at most the rows that were not written yet: `FLUSH_ROWS` captions or `FLUSH_SECONDS` of work, and
the one shard that was being written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from captioning.store.claims import Claims, bucket_of
from captioning.store.rows import CaptionRow
from captioning.store.store import CaptionStore

FLUSH_ROWS: Final = 256
FLUSH_SECONDS: Final = 5.0


class Saver:
    """Writes rows to `captions` and releases each bucket of `claims` once all of its images are on disk.

    Close it when the work ends, successfully or not (`contextlib.closing`).

    flush_rows: rows per shard. clock: monotonic seconds.
    """

    def __init__(
        self,
        captions: CaptionStore,
        claims: Claims,
        *,
        flush_rows: int = FLUSH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._captions = captions
        self._claims = claims
        self._open: dict[int, set[str]] = {}  # claimed bucket -> its images that still lack a row
        self._rows: list[CaptionRow] = []
        self._flush_rows = flush_rows
        self._clock = clock
        self._since = clock()
        self._thread = ThreadPoolExecutor(1)
        self._writing: tuple[Future[Any], list[CaptionRow]] | None = None

    def expect(self, bucket: int, images: set[str]) -> None:
        """Hold the claimed `bucket` until `add` has received a row for each of `images` and the rows are on disk."""
        self._open[bucket] = images

    def add(self, rows: Sequence[CaptionRow]) -> None:
        """Accept rows. A row without a reply counts as received but is not written.

        Raises ClipScgiError if the disk is full.
        """
        self._rows += rows
        if len(self._rows) >= self._flush_rows or self._clock() - self._since > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._settle()
        rows, self._rows, self._since = self._rows, [], self._clock()
        written = [row for row in rows if row.reply is not None]
        self._writing = self._thread.submit(self._captions.append, written), rows

    def _settle(self) -> None:
        """Wait for the shard that is being written, and release the buckets that it completes."""
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
        """Write the remaining rows and release all buckets."""
        try:
            self._flush()
            self._settle()
        finally:
            self._thread.shutdown()
            self._claims.release_all()
