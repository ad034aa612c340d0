"""The images that a reader finds, as columns: 29 bytes per image beside its path, instead of an object."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.growing import GrowingTexts
from data.people import Mask, is_person
from data.splits import SPLITS

BATCH_ROWS: Final = 1 << 14
Ints = NDArray[np.int64]

_SPLIT_CODES: Final[dict[str, int]] = {split: code for code, split in enumerate(SPLITS)}
_SPLIT_RANKS: Final = np.array([sorted(SPLITS).index(split) for split in SPLITS], dtype=np.int8)
_SPLIT_NAMES: Final = np.array(SPLITS, dtype=object)
_PATH: Final = pa.large_string()
SENTENCES_TYPE: Final = pa.large_list(pa.large_string())
"""Type of `Records.sentences`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image: `path` relative to the dataset's folder (posix), `split`, identity and camera.

    camid: `data.people.UNKNOWN_CAMERA` in every record of a dataset without cameras. label: the text that `pid`
    numbers; "" in every record of a dataset that numbers its identities itself. sentences: descriptions of the person
    that come with the dataset, in its order; () in a dataset without any.
    """

    path: str
    split: str
    pid: int
    camid: int
    label: str = ""
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Records(Sequence[ImageRecord]):
    """The `ImageRecord` of each image as columns, [N] each; an object is made for each record that is asked for.

    paths: large_string. splits: places in `data.splits.SPLITS`. labels: places in `texts`. sentences: large_list; None
    if no image has any.
    """

    paths: pa.Array
    splits: NDArray[np.int8]
    pids: Ints
    camids: Ints
    labels: NDArray[np.int32]
    texts: Sequence[str]
    sentences: pa.Array | None = None

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> Records:
        """Return the columns of `records`, in their order."""
        found = RecordsBuilder()
        for record in records:
            found.add(record)
        return found.build()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @overload
    def __getitem__(self, at: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Records: ...
    def __getitem__(self, at: int | slice) -> ImageRecord | Records:
        """Return one record, or some of them."""
        if isinstance(at, slice):
            return self.take(np.arange(len(self))[at])
        return next(iter(self.take(np.array([range(len(self))[at]]))))

    def __iter__(self) -> Iterator[ImageRecord]:
        """Yield the records; those of a batch are made together."""
        for part in self.batches():
            sentences = part.sentences.to_pylist() if part.sentences is not None else [()] * len(part)
            columns = (part.paths.to_pylist(), part.splits.tolist(), part.pids.tolist(), part.camids.tolist())
            for path, split, pid, camid, label, said in zip(*columns, part.labels.tolist(), sentences, strict=True):
                yield ImageRecord(
                    path=path, split=SPLITS[split], pid=pid, camid=camid, label=self.texts[label], sentences=tuple(said)
                )

    def __eq__(self, other: object) -> bool:
        """Return True if both have equal records in the same order."""
        if isinstance(other, Records):
            return len(self) == len(other) and bool(self.differs(other).sum() == 0)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def batches(self) -> Iterator[Records]:
        """Yield the records in parts that share memory with them."""
        for start in range(0, len(self), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            said = None if self.sentences is None else self.sentences.slice(start, BATCH_ROWS)
            yield Records(
                paths=self.paths.slice(start, BATCH_ROWS),
                splits=self.splits[rows],
                pids=self.pids[rows],
                camids=self.camids[rows],
                labels=self.labels[rows],
                texts=self.texts,
                sentences=said,
            )

    def take(self, rows: Ints | Mask) -> Records:
        """Return some records. rows: their places in order, or a mask [N]."""
        places = pa.array(np.flatnonzero(rows) if rows.dtype == np.bool_ else rows, pa.int64())
        return Records(
            paths=self.paths.take(places),
            splits=self.splits[rows],
            pids=self.pids[rows],
            camids=self.camids[rows],
            labels=self.labels[rows],
            texts=self.texts,
            sentences=None if self.sentences is None else self.sentences.take(places),
        )

    def table(self) -> pa.Table:
        """Return the columns path, split, pid, camid and label as Arrow stores them in images.parquet."""
        used, at = np.unique(self.labels, return_inverse=True)
        columns = {
            "path": self.paths.cast(pa.string()),
            "split": pa.array(self.split_names(), pa.string()),
            "pid": self.pids,
            "camid": self.camids,
            "label": pa.array([self.texts[code] for code in used.tolist()], pa.string()).take(pa.array(at)),
        }
        return pa.table(columns)

    def by_path(self) -> Ints:
        """Return the places of the records in the order of their paths; of equal paths, in their own order."""
        return order_of(self.paths)

    def in_order(self) -> Records:
        """Return the records sorted by (split, path)."""
        places = self.by_path()
        return self.take(places[by_split(self.splits[places])])

    def split_names(self) -> NDArray[np.object_]:
        """Return the split of each record as text."""
        return _SPLIT_NAMES[self.splits]

    def people(self) -> Mask:
        """Return the mask of the records that show a known person, by the rule of `data.people`."""
        return is_person(self.split_names(), self.pids)

    def in_split(self, *splits: str) -> Mask:
        """Return the mask of the records in some splits."""
        return np.isin(self.splits, [_SPLIT_CODES[split] for split in splits])

    def has_labels(self) -> bool:
        """Return True if the identity of a record is text."""
        used = np.unique(self.labels).tolist()
        return any(self.texts[code] for code in used)

    def has_sentences(self) -> bool:
        """Return True if an image has a sentence."""
        return self.sentences is not None and len(self.sentences.flatten()) > 0

    def path(self, row: int) -> str:
        """Return the path of one record."""
        return str(self.paths[int(row)].as_py())

    def differs(self, other: Records) -> Mask:
        """Return the mask of the records that differ from those of `other`, which are as many."""
        differs = pc.not_equal(self.paths, other.paths).to_numpy(zero_copy_only=False)
        for name in ("splits", "pids", "camids"):
            differs |= getattr(self, name) != getattr(other, name)
        codes = {text: code for code, text in enumerate(other.texts)}
        labels = np.array([codes.get(text, -1) for text in self.texts], dtype=np.int32)
        differs |= labels[self.labels] != other.labels
        if self.sentences is None and other.sentences is None:
            return differs
        for row, (mine, theirs) in enumerate(zip(self, other, strict=True)):
            differs[row] |= mine.sentences != theirs.sentences
        return differs


class RecordsBuilder:
    """Records that arrive one at a time or in columns, stored as columns."""

    def __init__(self) -> None:
        self._paths = GrowingTexts()
        self._waiting: list[str] = []
        self._splits, self._pids, self._camids, self._labels = array("b"), array("q"), array("q"), array("i")
        self._texts = {"": 0}
        self._sentences: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Return the number of records so far."""
        return len(self._pids)

    def add(self, record: ImageRecord) -> None:
        """Add one record."""
        self.append(record.path, record.split, record.pid, record.camid, label=record.label, sentences=record.sentences)

    def append(
        self, path: str, split: str, pid: int, camid: int, *, label: str = "", sentences: tuple[str, ...] = ()
    ) -> None:
        """Add one record, given by its fields."""
        if sentences:
            self._sentences[len(self._pids)] = sentences
        self._waiting.append(path)
        self._splits.append(_SPLIT_CODES[split])
        self._pids.append(pid)
        self._camids.append(camid)
        self._labels.append(self._texts.setdefault(label, len(self._texts)))
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._paths.extend(pa.array(self._waiting, _PATH))
        self._waiting = []

    def build(self) -> Records:
        """Return the records in the order in which they were added. None can be added afterwards."""
        self._flush()
        said = [self._sentences.get(row, ()) for row in range(len(self))] if self._sentences else None
        return Records(
            paths=self._paths.build(),
            splits=np.frombuffer(self._splits, dtype=np.int8),
            pids=np.frombuffer(self._pids, dtype=np.int64),
            camids=np.frombuffer(self._camids, dtype=np.int64),
            labels=np.frombuffer(self._labels, dtype=np.int32),
            texts=list(self._texts),
            sentences=None if said is None else pa.array(said, SENTENCES_TYPE),
        )


def by_split(splits: NDArray[np.int8]) -> Ints:
    """Return the places of images in the order of their splits; in a split, in their own order."""
    order: Ints = np.argsort(_SPLIT_RANKS[splits], kind="stable")
    return order


def joined(paths: list[pa.Array]) -> pa.Array:
    """Return the paths in all of the arrays as one."""
    return pa.concat_arrays([pa.array([], _PATH), *paths])


def order_of(paths: pa.Array) -> Ints:
    """Return the places of `paths` in sorted order; of equal ones, in their own order."""
    order: Ints = pc.sort_indices(paths).to_numpy().view(np.int64)
    return order


def code_of_split(split: str) -> int:
    """Return the place of a split in `data.splits.SPLITS`."""
    return _SPLIT_CODES[split]
