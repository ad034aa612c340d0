"""The images of a watched dataset as columns: 32 bytes per image beside the texts of its path and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.digests import WIDTH, Digests, digests_of, texts_of
from data.columns.growing import GrowingTexts
from data.columns.source import BATCH_ROWS, ParquetRows
from data.columns.texts import Texts
from data.files import write_tables
from data.index.survey import Survey
from data.people import Mask

_TEXT: Final = pa.large_string()
_NUL: Final = pa.scalar("\0", _TEXT)
_LABELS: Final = ("split", "pid", "camid")
_SCHEMA: Final = pa.schema([("image", pa.string()), ("sha256", pa.string())])
_HASH: Final = b"dataset_hash"

Places = NDArray[np.int64]


class Counts(NamedTuple):
    """Numbers of images that were added, removed, or got other bytes or labels."""

    added: int = 0
    removed: int = 0
    changed: int = 0


NO_CHANGES: Final = Counts()


@dataclass(frozen=True)
class WatchedImages:
    """The images of a dataset, [N]. labels: split, identity and camera of each, separated by NUL."""

    paths: Texts
    labels: Texts
    digests: Digests

    @classmethod
    def of(cls, batches: Iterable[pa.Table]) -> Self:
        """Return the images in tables with the columns path, split, pid, camid and sha256."""
        return cls._joined((rows["path"].combine_chunks(), _labels(rows), rows["sha256"]) for rows in batches)

    @classmethod
    def of_survey(cls, found: Survey) -> Self:
        """Return the images of a survey."""
        parts = zip(found.records.batches(), found.facts.batches(), strict=True)
        return cls.of(some.table().append_column("sha256", pa.array(facts.texts())) for some, facts in parts)

    @classmethod
    def _joined(cls, parts: Iterable[tuple[pa.Array, pa.Array, pa.ChunkedArray]]) -> Self:
        paths, labels, digests = GrowingTexts(), GrowingTexts(), bytearray()
        for some, of_some, sha256 in parts:
            paths.extend(some)
            labels.extend(of_some)
            digests += digests_of(sha256).tobytes()
        return cls(Texts(paths.build()), Texts(labels.build()), np.frombuffer(digests, dtype=f"S{WIDTH}"))

    @classmethod
    def read(cls, file: Path, *, dataset_hash: str) -> Self:
        """Return the images that `write` has written. Raises ValueError if they belong to another state."""
        source = ParquetRows(file)
        if (source.schema.metadata or {}).get(_HASH) != dataset_hash.encode():
            raise ValueError(f"{file} belongs to another state of the dataset")
        return cls._joined(map(_stored, source.batches(*_SCHEMA.names)))

    def write(self, file: Path, *, dataset_hash: str) -> None:
        """Write the images of the state `dataset_hash` of a dataset."""
        write_tables(file, self._tables(), _SCHEMA.with_metadata({_HASH: dataset_hash.encode()}))

    def _tables(self) -> Iterator[pa.Table]:
        for start in range(0, max(1, len(self.paths)), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            images = pc.binary_join_element_wise(self.paths[rows].array, self.labels[rows].array, _NUL)
            yield pa.table({"image": images, "sha256": texts_of(self.digests[rows])})

    def changes_to(self, new: WatchedImages) -> Counts:
        """Count the images, by path, that differ in a later state."""
        at = self.paths.places_in(new.paths)
        known = np.flatnonzero(at >= 0)
        is_old = np.zeros(len(new.paths), dtype=np.bool_)
        is_old[at[known]] = True
        others = new.paths[~is_old].sorted_distinct()
        repeated = np.unique(self.paths.places_in(others))
        return Counts(
            added=len(others) - int((repeated >= 0).sum()),
            removed=_distinct(self.paths[at < 0]),
            changed=_distinct(self.paths[known[self._differs(new, known, at[known])]]),
        )

    def _differs(self, new: WatchedImages, mine: Places, theirs: Places) -> Mask:
        """Return the mask of the images whose labels or bytes differ. mine, theirs: their places in both states."""
        found = np.empty(len(mine), dtype=np.bool_)
        for start in range(0, len(mine), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            here, there = mine[rows], theirs[rows]
            labels = pc.not_equal(self.labels[here].array, new.labels[there].array).to_numpy(zero_copy_only=False)
            found[rows] = labels | (self.digests[here] != new.digests[there])
        return found


def _labels(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(*(rows[name].cast(_TEXT).combine_chunks() for name in _LABELS), _NUL)


def _stored(rows: pa.Table) -> tuple[pa.Array, pa.Array, pa.ChunkedArray]:
    """Return path, labels and sha256 of rows that were written."""
    both = pc.split_pattern(rows["image"].combine_chunks(), "\0", max_splits=1).flatten()
    return both[::2], both[1::2], rows["sha256"]


def _distinct(texts: Texts) -> int:
    return int(pc.count_distinct(texts.array).as_py())
