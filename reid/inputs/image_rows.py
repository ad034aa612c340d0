"""The indexed images as columns, from which training, validation, evaluation and search select rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.distinct import one_array
from data.people import JUNK
from data.stages.images import IndexedImages

Ints = NDArray[np.int64]
Texts = NDArray[np.object_]


@dataclass(frozen=True)
class ImageRows:
    """Columns of N images; `position` is the row in images.parquet and in the pixel cache."""

    position: Ints
    path: Texts
    sha256: Texts
    split: Texts
    pid: Ints
    camid: Ints

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.position)

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


def read_rows(images: IndexedImages) -> ImageRows:
    """Return all rows of images.parquet. Raises DataError when the file cannot be read."""
    table = images.rows("path", "sha256", "split", "pid", "camid")
    path, sha256 = (np.array(table[name].to_pylist(), dtype=object) for name in ("path", "sha256"))
    split = _repeated(one_array(table["split"].dictionary_encode()))
    pid, camid = (table[name].to_numpy() for name in ("pid", "camid"))
    return ImageRows(np.arange(table.num_rows, dtype=np.int64), path, sha256, split, pid, camid)


def _repeated(column: pa.DictionaryArray) -> Texts:
    """Return the texts of a column with one object per distinct text."""
    values = np.array(column.dictionary.to_pylist(), dtype=object)
    found: Texts = values[column.indices.to_numpy()]
    return found
