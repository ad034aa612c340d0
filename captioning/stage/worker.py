"""The worker of the caption stage, which captions images together with other processes.

A worker claims one bucket of images at a time (`captioning.store.claims`), rechecks which of its images the store
already holds, and captions the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from captioning.engines.load import CaptionEngine, load_engine
from captioning.reading import Pending, read_ahead
from captioning.stage.worklist import Indices, WorkList
from captioning.store.claims import BUCKETS, Claims
from captioning.store.rows import CaptionRow
from captioning.store.saver import FLUSH_ROWS, Saver
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.progress import ProgressFn

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5


class Failure(NamedTuple):
    """Why an image is not captioned. status: ``image_error``, ``server_error`` or ``missing``."""

    status: str
    error: str


@dataclass(kw_only=True)
class Done:
    """Results of a worker. generated: number of captions made. failed: image sha256 -> why it is not captioned."""

    generated: int = 0
    failed: dict[str, Failure] = field(default_factory=dict)


class Worker:
    """Caption worker for the images of one dataset; its results are in `done`.

    captions: the store to fill. images: those of the dataset. check_model: called after the model is loaded and before
    its first caption; raises if the model is not the captioner of `captions`.
    """

    def __init__(
        self,
        captions: CaptionStore,
        *,
        images: WorkList,
        root: Path,
        config: CaptionConfig,
        progress: ProgressFn,
        check_model: Callable[[], None],
        load: Callable[[CaptionConfig], CaptionEngine] | None = None,  # by default `load_engine`
        flush_rows: int = FLUSH_ROWS,
    ) -> None:
        self.snapshot = Snapshot(captions)
        self.done = Done()
        self.captions = captions
        self._images = images
        self._root = root
        self._config = config
        self._progress = progress
        self._check_model = check_model
        self._load = load or load_engine
        self._flush_rows = flush_rows
        self._claims = Claims(captions.folder)
        self._engine: CaptionEngine | None = None
        self._seen = self._total = 0

    @property
    def distinct(self) -> int:
        """Number of distinct images."""
        return len(self._images)

    def work(self, buckets: Iterable[int] = range(BUCKETS), *, patient: bool) -> None:
        """Caption the images in `buckets` that are not captioned yet.

        patient: wait for buckets that other processes hold, and caption any images that they leave; otherwise skip
        these buckets. Raises the errors of the engine; earlier captions are kept.
        """
        self.captions.remove_leftovers()
        wanted = np.isin(np.arange(BUCKETS), list(buckets))
        self._total = self._per_bucket(np.ones(len(self._images), dtype=np.bool_), wanted).sum().item()
        while missing := self._missing(wanted):
            self._seen = self._total - sum(missing.values())
            with closing(Saver(self.captions, self._claims, flush_rows=self._flush_rows)) as saver:
                claimed = self._claimed(missing, saver)
                first = next(claimed, None)
                if first is not None:
                    self._caption(chain([first], claimed), saver)
            if not patient:
                return
            if first is None:
                self._progress(self._seen, self._total, "waiting for other workers")
                time.sleep(_POLL_SECONDS)

    def _per_bucket(self, mask: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return for each bucket how many of its images are in `mask`; 0 for buckets that are not wanted."""
        return np.where(wanted, self._images.per_bucket(mask), 0)

    def _missing(self, wanted: NDArray[np.bool_]) -> dict[int, int]:
        """Return bucket -> number of its images that have neither a caption nor failed, in the order of the buckets."""
        self.snapshot.refresh()
        mask = ~self.snapshot.has(self._images.digests)
        mask[self._images.find([*self.done.failed])] = False
        counts = self._per_bucket(mask, wanted)
        return {bucket: counts[bucket].item() for bucket in np.flatnonzero(counts).tolist()}

    def _claimed(self, missing: Mapping[int, int], saver: Saver) -> Iterator[Pending]:
        """Yield the images of all free buckets, claiming each bucket just before its first image is needed."""
        for bucket, count in missing.items():
            if not self._claims.take(bucket):
                continue
            self.snapshot.refresh()  # the previous owner of the bucket may have captioned some of it
            rest = [item for item in self._images.pending(self._left(bucket)) if item.sha256 not in self.done.failed]
            self._seen += count - len(rest)
            if not rest:
                self._claims.release(bucket)
                continue
            saver.expect(bucket, {item.sha256 for item in rest})
            yield from rest

    def _left(self, bucket: int) -> Indices:
        """Return the images of a bucket that are not captioned yet."""
        part = self._images.in_bucket(bucket)
        return part.start + np.flatnonzero(~self.snapshot.has(self._images.digests[part]))

    def _caption(self, items: Iterable[Pending], saver: Saver) -> None:
        engine = self._loaded_engine()
        loaded = read_ahead(items, self._root, engine.prepare, workers=self._config.workers, ahead=2 * engine.width)
        # Both own threads, which after an error the garbage collector would join from an arbitrary thread.
        with closing(loaded), closing(engine.rows(loaded)) as answers:
            for rows in answers:
                saver.add(rows)
                self._count(rows)
                self._progress(self._seen, self._total, "")

    def _loaded_engine(self) -> CaptionEngine:
        if self._engine is None:
            self._progress(self._seen, self._total, "loading the model")
            self._engine = self._load(self._config)
            self._check_model()
        return self._engine

    def _count(self, rows: Iterable[CaptionRow]) -> None:
        for row in rows:
            self._seen += 1
            if row.reply is not None:
                self.done.generated += 1
                continue
            image = row.image_sha256
            self.done.failed[image] = Failure(status=row.status, error=row.error or "unknown")
            (pending,) = self._images.pending(self._images.find([image]))
            log.warning("image %s (%s...) is not captioned: %s", pending.paths[0], image[:12], row.error)
