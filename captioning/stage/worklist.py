"""The distinct images of a dataset, as sorted digests, with the paths of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.reading import Pending
from captioning.store.claims import BUCKETS
from data.columns.digests import Digests, digests_of, first_bytes, positions, texts_of
from data.stages.images import IndexedImages

Indices = NDArray[np.int64]
"""Numbers of distinct images: indices into `WorkList.digests`, [N]."""


class WorkList:
    """The distinct images of a dataset. Identical files are captioned once."""

    def __init__(self, digests: Digests, paths: pa.ChunkedArray) -> None:
        """digests, paths: of every image of the dataset, [N], in the order of the index."""
        self._order = np.argsort(digests, kind="stable")
        digests = digests[self._order]
        first = np.append(True, digests[1:] != digests[:-1])[: len(digests)]
        self._starts = np.append(np.flatnonzero(first), len(digests))
        self._paths = paths
        self.digests: Digests = digests if first.all() else digests[first]
        """The distinct images, sorted."""
        self._bounds = np.searchsorted(first_bytes(self.digests), np.arange(BUCKETS + 1))

    @classmethod
    def of(cls, images: IndexedImages) -> WorkList:
        """Return the distinct images of an index."""
        return cls(images.sha256(), images.rows("path")["path"])

    def __len__(self) -> int:
        """Return the number of distinct images."""
        return len(self.digests)

    def in_bucket(self, bucket: int) -> slice:
        """Return the range of the images of a bucket (`captioning.store.claims`)."""
        return slice(self._bounds[bucket], self._bounds[bucket + 1])

    def per_bucket(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return for each bucket how many of its images are in `mask`, [N]."""
        counts = np.append(0, np.cumsum(mask))
        return np.diff(counts[self._bounds])

    def find(self, images: Sequence[str]) -> Indices:
        """Return the numbers of some images of the dataset, given as text."""
        return positions(self.digests, digests_of(pa.array(images, pa.string())))

    def pending(self, indices: Indices) -> list[Pending]:
        """Return some images to caption, in the order of the index."""
        indices = indices[np.argsort(self._order[self._starts[indices]])]
        texts = texts_of(self.digests[indices]).to_pylist()
        return [Pending(sha256=text, paths=paths) for text, paths in zip(texts, self._paths_of(indices), strict=True)]

    def _paths_of(self, indices: Indices) -> Iterator[tuple[str, ...]]:
        for index in indices.tolist():
            rows = self._order[self._starts[index] : self._starts[index + 1]]
            yield tuple(self._paths[row].as_py() for row in rows.tolist())
