"""What is known of the distinct images while a features file is made: an embedding, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from data.columns.digests import heads
from data.columns.rejected import RejectedRows
from data.images.decode import REASONS
from reid.embedding.images import DistinctImages, ImageFiles, Ints, Keys
from reid.embedding.journal import Float32s, Journal

_REASONS: Final = ("", *REASONS)
_DETAILS: Final = ("", *REASONS.values())
_CODES: Final = {reason: code for code, reason in enumerate(_REASONS)}
_SAVE_ROWS: Final = 8192
_AT_ONCE: Final = 1 << 16


class KeyPlaces:
    """Finds distinct images by their keys. 12 bytes per image: the order of the keys, and the first bytes of each."""

    def __init__(self, images: DistinctImages, *, by_camera: bool) -> None:
        self._images = images
        self._by_camera = by_camera
        order = np.argsort(images.starts)
        self._heads = heads(images.files.sha256)[images.rows[images.starts[order]]].astype(np.uint64)
        self._order = order.astype(np.int32)

    def of(self, keys: Keys) -> Ints:
        """Return the number of the image of each of some thousand keys, -1 if there is none."""
        found = np.full(len(keys), -1, dtype=np.int64)
        wanted = heads(keys).astype(np.uint64)
        open_rows = np.argsort(wanted, kind="stable")  # looking up sorted values is many times faster
        at = np.searchsorted(self._heads, wanted[open_rows])
        while len(open_rows):  # another turn only for keys that begin alike, such as those of two cameras
            is_candidate = at < len(self._heads)
            is_candidate[is_candidate] = self._heads[at[is_candidate]] == wanted[open_rows[is_candidate]]
            open_rows, at = open_rows[is_candidate], at[is_candidate]
            numbers = self._order[at].astype(np.int64)
            is_equal = self._images[numbers].keys(by_camera=self._by_camera) == keys[open_rows]
            found[open_rows[is_equal]] = numbers[is_equal]
            open_rows, at = open_rows[~is_equal], at[~is_equal] + 1
        return found


class KnownImages:
    """D distinct images, of which the journal has some. by_camera: keys are those of a model with camera embeddings."""

    def __init__(self, images: DistinctImages, journal: Journal, *, by_camera: bool) -> None:
        self.images = images
        self.by_camera = by_camera
        self._journal = journal
        self._rows_D = np.full(len(images), -1, dtype=np.int32)
        self._reasons_D = np.zeros(len(images), dtype=np.int8)

    @property
    def saved(self) -> int:
        """Number of embeddings in the journal, also of images that are not wanted."""
        return len(self._journal)

    def find(self, places: KeyPlaces) -> None:
        """Find the images that the journal has. places: of the keys of all images."""
        first = 0
        for keys in self._journal.stored_keys():
            numbers = places.of(keys)
            there = np.flatnonzero(numbers >= 0)
            self._rows_D[numbers[there]] = first + there
            first += len(keys)

    def missing(self) -> Ints:
        """Return the numbers of the images that the journal does not have."""
        return np.flatnonzero(self._rows_D < 0)

    def add_missing(self, numbers: Ints, vectors_ND: Float32s) -> None:
        """Append to the journal what it does not have; of equal numbers the first. Numbers below 0 are left out."""
        wanted, firsts = np.unique(numbers, return_index=True)
        wanted, firsts = wanted[wanted >= 0], firsts[wanted >= 0]
        new = self._rows_D[wanted] < 0
        self.add(wanted[new], vectors_ND[firsts[new]])

    def add(self, numbers: Ints, vectors_ND: Float32s) -> None:
        """Append the embeddings of images to the journal."""
        first = len(self._journal)
        self._journal.append(self.images[numbers].keys(by_camera=self.by_camera), vectors_ND)
        self._rows_D[numbers] = np.arange(first, first + len(numbers))

    def reject(self, numbers: Ints, reasons: Sequence[str]) -> None:
        """Remember why images have no embedding."""
        self._reasons_D[numbers] = [_CODES[reason] for reason in reasons]

    def rejected(self) -> RejectedRows:
        """Return the files of the images that were rejected."""
        refused = np.flatnonzero(self._reasons_D)
        images = self.images[refused]
        codes = pa.array(np.repeat(self._reasons_D[refused], images.counts()))
        paths = self.images.files.paths[images.places()].array
        texts = [pa.array(texts, pa.large_string()).take(codes) for texts in (_REASONS, _DETAILS)]
        return RejectedRows(pa.RecordBatch.from_arrays([paths, *texts], names=["path", "reason", "detail"]))

    def blocks(self, rows: int) -> Iterator[tuple[ImageFiles, Float32s]]:
        """Yield the files that have an embedding, in order, with their embeddings; `rows` at a time."""
        rows_N = np.full(len(self.images.files), -1, dtype=np.int32)
        for start in range(0, len(self.images), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            images = self.images[part]
            rows_N[images.places()] = np.repeat(self._rows_D[part], images.counts())
        kept = np.flatnonzero(rows_N >= 0)
        for start in range(0, len(kept), rows):
            some = kept[start : start + rows]
            yield self.images.files[some], self._journal.read(rows_N[some].astype(np.int64))


class Saver:
    """Collects embeddings and adds them to the known ones every so many seconds, or some thousand at a time."""

    def __init__(self, known: KnownImages, seconds: float) -> None:
        self._known = known
        self._seconds = seconds
        self._saved = time.monotonic()
        self._numbers: list[Ints] = []
        self._rows: list[Float32s] = []

    def add(self, numbers: Ints, rows_ND: Float32s) -> None:
        """Take embeddings, and save what was collected if it is time."""
        if len(numbers):
            self._numbers.append(numbers)
            self._rows.append(rows_ND)
        if sum(map(len, self._rows)) >= _SAVE_ROWS or time.monotonic() - self._saved >= self._seconds:
            self.save()

    def save(self) -> None:
        """Save what was collected."""
        if self._numbers:
            self._known.add(np.concatenate(self._numbers), np.concatenate(self._rows))
        self._numbers, self._rows, self._saved = [], [], time.monotonic()
