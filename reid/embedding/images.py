"""The images of a features file as columns, and the distinct ones among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.digests import Digests, digests_of, in_groups, joined, texts_of
from data.columns.distinct import one_array
from data.columns.texts import Texts
from data.errors import ConfigError
from data.people import UNKNOWN_CAMERA

Ints = NDArray[np.int64]
Keys = NDArray[np.bytes_]
"""What the embedding of an image depends on, [N]: the digest of its file (S32); with camera embeddings also the camera
(S40)."""

COLUMNS: Final = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, posix separators
        ("sha256", pa.string()),  # of the file's bytes
        ("split", pa.string()),  # null if the images have no split
        ("pid", pa.int64()),  # identity; null if unknown
        ("camid", pa.int64()),  # camera; null if unknown
        ("label", pa.string()),  # the text that pid numbers; null if the dataset numbers its identities itself
    ]
)
"""The columns of a features file that describe an image."""
_AT_ONCE: Final = 1 << 12


class ImageFile(NamedTuple):
    """One image of a features file. path: relative to the root, posix. What is unknown of it is None."""

    path: str
    sha256: str
    split: str | None = None
    pid: int | None = None
    camid: int | None = None
    label: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFiles(Sequence[ImageFile]):
    """The `ImageFile` of each image as columns, [N] each; an object is made for each one that is asked for.

    splits, labels: texts, dictionary-encoded. pids, camids: int64. What is unknown in these four is null.
    """

    paths: Texts
    sha256: Digests
    splits: pa.DictionaryArray
    pids: pa.Int64Array
    camids: pa.Int64Array
    labels: pa.DictionaryArray

    @classmethod
    def of(cls, images: Iterable[ImageFile]) -> ImageFiles:
        """Return the columns of `images`, in their order. Raises ConfigError if the digest of one is not a sha256."""
        if isinstance(images, ImageFiles):
            return images
        rows = list(images)
        columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
        table = pa.table([list(column) for column in columns], schema=COLUMNS)
        try:
            return cls.of_table(table)
        except ValueError as error:
            raise ConfigError(f"images to embed: {error}") from error

    @classmethod
    def of_table(cls, table: pa.Table) -> ImageFiles:
        """Return the images of a table with the columns `COLUMNS`. Raises ValueError if a digest is not a sha256."""
        columns = {name: table[name].cast(COLUMNS.field(name).type) for name in COLUMNS.names}
        split, pid, camid, label = (columns[name] for name in ("split", "pid", "camid", "label"))
        return cls(
            paths=Texts(columns["path"]),
            sha256=digests_of(columns["sha256"]),
            splits=one_array(split.dictionary_encode()),
            pids=one_array(pid),
            camids=one_array(camid),
            labels=one_array(label.dictionary_encode()),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice | Ints) -> ImageFiles: ...
    def __getitem__(self, index: int | slice | Ints) -> ImageFile | ImageFiles:
        """Return one image, or the columns of those at `index`."""
        if isinstance(index, int):
            place = range(len(self))[index]
            return next(iter(self[place : place + 1]))
        places = np.arange(len(self))[index] if isinstance(index, slice) and index.step not in (None, 1) else index
        if isinstance(places, slice):
            start, stop, _ = places.indices(len(self))
            rest = [column.slice(start, max(0, stop - start)) for column in self._arrow()]
        else:
            rest = [column.take(pa.array(places)) for column in self._arrow()]
        splits, pids, camids, labels = rest
        return ImageFiles(
            paths=self.paths[places],
            sha256=self.sha256[places],
            splits=splits,
            pids=pids,
            camids=camids,
            labels=labels,
        )

    def _arrow(self) -> tuple[pa.Array, ...]:
        return self.splits, self.pids, self.camids, self.labels

    def __iter__(self) -> Iterator[ImageFile]:
        """Yield the images; a few thousand exist at a time."""
        for start in range(0, len(self), _AT_ONCE):
            columns = self[start : start + _AT_ONCE].table().columns
            yield from map(ImageFile._make, zip(*(column.to_pylist() for column in columns), strict=True))

    def table(self) -> pa.Table:
        """Return the columns as a features file has them (`COLUMNS`); for some thousand images at a time."""
        splits, pids, camids, labels = self._arrow()
        columns = self.paths.array, texts_of(self.sha256), splits, pids, camids, labels
        cast = [column.cast(kind) for column, kind in zip(columns, COLUMNS.types, strict=True)]
        return pa.table(cast, schema=COLUMNS)


def camera_numbers(camids: pa.Int64Array) -> Ints:
    """Return cameras as numbers, `data.people.UNKNOWN_CAMERA` for null."""
    numbers: Ints = camids.fill_null(UNKNOWN_CAMERA).to_numpy(zero_copy_only=False)
    return numbers


@dataclass(frozen=True, eq=False, kw_only=True)
class DistinctImages:
    """D distinct images in the order in which they first occur among `files`, each with all files of its key.

    rows: places in `files`, sorted by key; those of one key in order. starts, ends: where in `rows` they are, [D].
    """

    files: ImageFiles
    rows: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    @classmethod
    def of(cls, files: ImageFiles, *, by_camera: bool) -> DistinctImages:
        """Return the images with different keys. by_camera: the model has camera embeddings."""
        order, is_new = in_groups(files.sha256)
        if by_camera:
            cameras = camera_numbers(files.camids)
            order = order[np.lexsort((cameras[order], np.cumsum(is_new)))]
            is_new[1:] |= np.diff(cameras[order]) != 0
        rows, starts = order.astype(np.int32), np.flatnonzero(is_new).astype(np.int32)
        del order
        ends = np.append(starts[1:], np.int32(len(rows)))[: len(starts)]
        by_first = np.argsort(rows[starts])
        return cls(files=files, rows=rows, starts=starts[by_first], ends=ends[by_first])

    def __len__(self) -> int:
        """Return D."""
        return len(self.starts)

    def __getitem__(self, index: slice | Ints) -> DistinctImages:
        """Return some of the images."""
        return DistinctImages(files=self.files, rows=self.rows, starts=self.starts[index], ends=self.ends[index])

    def __iter__(self) -> Iterator[list[ImageFile]]:
        """Yield the files of each image; those of a few thousand images exist at a time."""
        for start in range(0, len(self), _AT_ONCE):
            part = self[start : start + _AT_ONCE]
            files = iter(self.files[part.places()])
            for count in part.counts().tolist():
                yield [next(files) for _ in range(count)]

    def firsts(self) -> Ints:
        """Return the place in `files` of the first file of each image, [D]."""
        return self.rows[self.starts].astype(np.int64)

    def counts(self) -> Ints:
        """Return the number of files of each image, [D]."""
        return (self.ends - self.starts).astype(np.int64)

    def places(self) -> Ints:
        """Return the places in `files` of the files of all images, those of the first image first."""
        counts = self.counts()
        before = np.cumsum(counts) - counts
        return self.rows[np.repeat(self.starts - before, counts) + np.arange(counts.sum())].astype(np.int64)

    def keys(self, *, by_camera: bool) -> Keys:
        """Return the key of each image, [D]."""
        firsts = self.firsts()
        digests = self.files.sha256[firsts]
        return joined(digests, camera_numbers(self.files.camids.take(pa.array(firsts)))) if by_camera else digests
