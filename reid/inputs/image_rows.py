"""The indexed images as columns, from which training, validation, evaluation and search select rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.digests import Digests, digests_of, one_text
from data.columns.distinct import one_array
from data.columns.texts import Texts
from data.people import JUNK
from data.stages.images import IndexedImages

Ints = NDArray[np.int64]
Splits = NDArray[np.object_]
"""The split of each image; images of one split share one text."""


class ImageRow(NamedTuple):
    """One image. sha256: 64 hexadecimal digits."""

    path: str
    sha256: str
    split: str
    pid: int
    camid: int


@dataclass(frozen=True)
class ImageRows:
    """Columns of N images; `position` is the row in images.parquet and in the pixel cache."""

    position: Ints
    path: Texts
    sha256: Digests
    split: Splits
    pid: Ints
    camid: Ints

    @classmethod
    def of(cls, images: Iterable[ImageRow]) -> Self:
        """Return the columns of a few images, at the positions 0, 1, ..."""
        rows = list(images)
        path, sha256, split, pid, camid = zip(*rows, strict=True) if rows else [()] * len(ImageRow._fields)
        return cls(
            np.arange(len(rows), dtype=np.int64),
            Texts(path),
            digests_of(pa.array(sha256, pa.string())),
            np.array(split, dtype=object),
            np.array(pid, dtype=np.int64),
            np.array(camid, dtype=np.int64),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.position)

    def row(self, at: int) -> ImageRow:
        """Return one image."""
        return ImageRow(
            self.path[at], one_text(self.sha256, at), self.split[at], int(self.pid[at]), int(self.camid[at])
        )

    def take(self, index: slice | Ints) -> ImageRows:
        """Return the images at `index`, in that order."""
        return ImageRows(
            self.position[index],
            self.path[index],
            self.sha256[index],
            self.split[index],
            self.pid[index],
            self.camid[index],
        )

    def of_split(self, split: str) -> Ints:
        """Return the positions of the images of one split, in order, without junk."""
        return np.flatnonzero((self.split == split) & (self.pid != JUNK))


class ImageLabels(NamedTuple):
    """The labels of all images, [N] each, in the order of images.parquet."""

    split: Splits
    pid: Ints
    camid: Ints


def read_rows(images: IndexedImages) -> ImageRows:
    """Return all rows of images.parquet. Raises DataError when the file cannot be read."""
    found, labels = images.digests(), read_labels(images)
    return ImageRows(np.arange(len(found), dtype=np.int64), found.paths, found.digests, *labels)


def read_labels(images: IndexedImages) -> ImageLabels:
    """Return the labels of all rows of images.parquet. Raises DataError when the file cannot be read."""
    count, at = images.count(), 0
    split, names = np.empty(count, dtype=object), dict[str, str]()
    pid, camid = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    for rows in images.batches("split", "pid", "camid"):
        part = slice(at, at + len(rows))
        split[part] = _shared(one_array(rows["split"].dictionary_encode()), names)
        pid[part], camid[part] = rows["pid"].to_numpy(), rows["camid"].to_numpy()
        at += len(rows)
    return ImageLabels(split, pid, camid)


def _shared(column: pa.DictionaryArray, names: dict[str, str]) -> Splits:
    """Return the texts of a column with one object per distinct text, which `names` keeps for all batches."""
    values = np.array([names.setdefault(text, text) for text in column.dictionary.to_pylist()], dtype=object)
    found: Splits = values[column.indices.to_numpy()]
    return found
