"""Speed of captioning, measured for some seconds on the images of a dataset. Its captions are not stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Final, overload

import numpy as np

from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.engines.load import CaptionEngine, load_engine
from captioning.hub import pin_offline
from captioning.reading import Pending, read_ahead
from captioning.stage.worklist import Indices, WorkList
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.errors import DataError
from data.stages.stage import RunContext

SECONDS: Final = 10.0
_STRIDE: Final = 17  # the first images of the probe are at least so many apart
_MOST: Final = 8192  # images that a probe reads before it begins again


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A measured speed. images: captioned while the clock ran. batch: images per batch while it ran."""

    images: int
    seconds: float
    batch: int

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Uncaptioned(Sequence[Pending]):
    """The distinct images without a caption, in the order of their digests."""

    def __init__(self, images: WorkList, missing: Indices) -> None:
        self._images = images
        self._missing = missing

    def __len__(self) -> int:
        """Return the number of images without a caption."""
        return len(self._missing)

    @overload
    def __getitem__(self, at: int) -> Pending: ...

    @overload
    def __getitem__(self, at: slice) -> list[Pending]: ...

    def __getitem__(self, at: int | slice) -> Pending | list[Pending]:
        """Return one image, or some of them in the order of the index."""
        if isinstance(at, slice):
            return self._images.pending(self._missing[at])
        return self._images.pending(self._missing[[at]])[0]


def uncaptioned(run: RunContext, config: CaptionConfig) -> Uncaptioned:
    """Return the distinct images without a caption by the captioner of `config`, as the caption stage would.

    Raises WeightsError if the model is missing.
    """
    images = WorkList.of(run.images)
    if not config.uses_model:
        return Uncaptioned(images, np.empty(0, dtype=np.int64))
    captioner = identify(pin_offline(config, run.store.root), run.store.memo)
    snapshot = Snapshot(CaptionStore(run.store.root, captioner))
    snapshot.refresh()
    return Uncaptioned(images, np.flatnonzero(~snapshot.has(images.digests)))


def measure(
    images: Sequence[Pending],
    root: Path,
    config: CaptionConfig,
    *,
    seconds: float = SECONDS,
    load: Callable[[CaptionConfig], CaptionEngine] = load_engine,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Load the captioner of `config` and caption some of `images` for about `seconds`; store nothing.

    Loading and the first batch, which also compiles, are not measured. A machine that needs longer for one image than
    `seconds` is measured by that image. Raises the errors of the engine, and DataError if no image can be read.
    """
    probe = _Probe(load(config), spread(images), root, config, clock)
    speed = probe.warm(seconds)
    if speed.batch >= probe.engine.width and len(images) >= speed.batch:
        speed = probe.stream(seconds)
    if not speed.images:
        raise DataError(f"none of the images that the probe tried can be read under {root}: run the index again")
    return speed


def spread(images: Sequence[Pending]) -> list[Pending]:
    """Return at most `_MOST` of the images, in an order whose beginning covers the whole dataset."""
    apart = max(_STRIDE, len(images) // _MOST)
    numbers = (at for start in range(apart) for at in range(start, len(images), apart))
    return [images[at] for at in islice(numbers, _MOST)]


@dataclass
class _Probe:
    """An engine and the images for it, in the order in which it captions them."""

    engine: CaptionEngine
    images: Sequence[Pending]
    root: Path
    config: CaptionConfig
    clock: Callable[[], float]

    def warm(self, seconds: float) -> Speed:
        """Caption batches of growing size up to the full one, as long as the next one is expected to fit `seconds`."""
        # A server answers single requests; compiled code is made for the full batch.
        size = self.engine.width if self.config.compile or self.config.engine != "transformers" else 1
        cold = self._timed(iter(self.images[:size]), size)
        if cold.seconds >= seconds and size == 1:
            return cold
        deadline = self.clock() + seconds
        while True:
            speed = self._timed(iter(self.images[:size]), size)
            bigger = min(2 * size, self.engine.width)
            if bigger <= size or size >= len(self.images) or self.clock() + speed.seconds * bigger / size > deadline:
                return speed
            size = bigger

    def stream(self, seconds: float) -> Speed:
        """Caption full batches for `seconds`, the same images again if they run out; no batch has an image twice."""
        endless = chain.from_iterable(iter(lambda: self.images, None))
        return self._timed(endless, self.engine.width, seconds)

    def _timed(self, images: Iterator[Pending], batch: int, seconds: float = float("inf")) -> Speed:
        loaded = read_ahead(images, self.root, self.engine.prepare, workers=self.config.workers, ahead=2 * batch)
        started, count = self.clock(), 0
        with closing(loaded), closing(self.engine.rows(loaded)) as answers:
            for rows in answers:
                count += sum(row.reply is not None for row in rows)
                if self.clock() - started >= seconds:
                    break
            taken = self.clock() - started
        return Speed(images=count, seconds=taken, batch=batch)
