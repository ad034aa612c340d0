"""The images of a dataset with their captions and flags, as one table that is read once and filtered by columns.

The texts and confidences of a dataset with many images stay in their file, and are read for the images that are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.audit.flags import FLAGS
from captioning.corrections.current import Current
from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE
from data.artifacts.inventory import Entry
from data.artifacts.store import ArtifactStore
from data.columns.digests import WIDTH, digests_of
from data.columns.distinct import one_array
from data.columns.source import ParquetRows
from data.columns.texts import TextPlaces, Texts
from data.errors import DataError
from data.images.root import find_root
from data.people import UNKNOWN_CAMERA
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import SPLITS
from flows.report.gather import take_rows
from flows.ui.content.items import UNSAID, ImageFilter, ImageItem, item_of, says
from flows.ui.content.recent import Recent

_IMAGES: Final = ("path", "sha256", "split", "pid", "camid", "width", "height")
_CAPTIONS: Final = ("caption", "status", "error", "model_id", "template_id", "captioner_fingerprint")
_SLOT_COLUMNS: Final = tuple(f"{kind}_{slot}" for slot in SLOTS for kind in ("attr", "conf"))
_DIGEST: Final = pa.binary(WIDTH)
_CODED: Final = {
    "split",
    "status",
    "model_id",
    "template_id",
    "captioner_fingerprint",
    *(f"attr_{slot}" for slot in SLOTS),
}
_FEW: Final = 1 << 18  # images whose texts and confidences stay in memory: about 70 MB
_ON_DEMAND: Final = ("caption", "error", *(f"conf_{slot}" for slot in SLOTS))
_MOST_TABLES: Final = 4
_MOST_ROWS: Final = 5_000_000  # of all tables in memory: about 130 bytes each
_MOST_CODES: Final = 1 << 15
_SAMPLE: Final = 12
_AT_ONCE: Final = 1 << 12  # images that a filter by corrections looks at
Places = NDArray[np.int64]


class ImageTable:
    """The images of one index, with captions and flags if there are any.

    root: the folder of the images, None if it is not found. problem: why captions are left out, or "". texts: the file
    of the columns `_ON_DEMAND`, None if the table has them, or has no captions.
    """

    def __init__(self, table: pa.Table, root: Path | None, problem: str = "", texts: Path | None = None) -> None:
        self.table = table
        self.root = root
        self.problem = problem
        self.texts = texts

    def __len__(self) -> int:
        """Return the number of images."""
        return self.table.num_rows

    @property
    def has_captions(self) -> bool:
        """True if captions were joined."""
        return "status" in self.table.column_names

    @property
    def has_flags(self) -> bool:
        """True if an audit was joined."""
        return next(iter(FLAGS)) in self.table.column_names

    @cached_property
    def _places(self) -> TextPlaces:
        return TextPlaces(Texts(self.table["path"]))

    def row_of(self, path: str) -> int | None:
        """Return the row of an image, None if there is none with this path."""
        return self._places.find(path)

    def person(self, row: int) -> str:
        """Return the identity of an image as the dataset names it."""
        label = self.table[LABEL.name][row].as_py() if LABEL.name in self.table.column_names else None
        return label or str(self.table["pid"][row].as_py())

    @cached_property
    def flag_counts(self) -> dict[str, int]:
        """Flag -> number of captions that have it; empty without an audit."""
        return {flag: pc.sum(self.table[flag]).as_py() or 0 for flag in FLAGS} if self.has_flags else {}

    @cached_property
    def cameras(self) -> tuple[int, ...]:
        """The known cameras in order."""
        return tuple(sorted(set(pc.unique(self.table["camid"]).to_pylist()) - {UNKNOWN_CAMERA}))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        found = _distinct(self.table["split"])
        return tuple(split for split in SPLITS if split in found)

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Slot -> the values that captions give, sorted; empty without captions."""
        if not self.has_captions:
            return {}
        return {slot: tuple(sorted(_distinct(self.table[f"attr_{slot}"]))) for slot in SLOTS}

    @cached_property
    def template(self) -> str | None:
        """Id of the template of the captions; None without captions."""
        if not self.has_captions:
            return None
        return next(iter(_distinct(self.table["template_id"])), None)

    def select(self, wanted: ImageFilter, corrections: Current | None = None) -> Places:
        """Return the rows that `wanted` selects, in order; a corrected caption counts as it was corrected."""
        said = self._all(self._said_masks(wanted))
        in_state = np.full(len(self), wanted.state in ("", "model"))
        if corrections and (wanted.text or wanted.attributes or wanted.state):
            for item in self._corrected(corrections):
                said[item.row] = says(item, wanted)
                in_state[item.row] = not wanted.state or (item.state or "model") == wanted.state
        said &= in_state
        return np.flatnonzero(said & self._all(self._place_masks(wanted)))

    def items(self, rows: Sequence[int] | Places, corrections: Current | None = None) -> list[ImageItem]:
        """Return the images at `rows`, in that order."""
        known = {} if corrections is None else corrections
        return [
            item_of(row, values, known.get(values["sha256"].hex()))
            for row, values in zip(map(int, rows), self._taken(rows), strict=True)
        ]

    def item(self, row: int, corrections: Current | None = None) -> ImageItem:
        """Return one image. Raises IndexError if it does not exist."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.items([row], corrections)[0]

    def _all(self, masks: Sequence[pa.ChunkedArray | None]) -> NDArray[np.bool_]:
        both: NDArray[np.bool_] = np.ones(len(self), dtype=bool)
        for mask in masks:
            if mask is not None:
                both &= pc.fill_null(mask, False).to_numpy()
        return both

    def _corrected(self, corrections: Current) -> Iterator[ImageItem]:
        """Yield the images that have a correction; a few thousand exist at a time."""
        digests = [None, pa.py_buffer(corrections.digests)]
        known = pa.FixedSizeBinaryArray.from_buffers(_DIGEST, len(corrections), digests)
        rows = np.flatnonzero(pc.is_in(self.table["sha256"], value_set=known))
        for start in range(0, len(rows), _AT_ONCE):
            yield from self.items(rows[start : start + _AT_ONCE], corrections)

    def _taken(self, rows: Sequence[int] | Places) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.table.take(pa.array(rows, pa.int64())).to_pylist()
        if self.texts is None or not found:
            return found
        with _damage_explained(self.texts):
            said = take_rows(self.texts, [int(row) for row in rows], _ON_DEMAND)
        return [held | more for held, more in zip(found, said, strict=True)]

    def _place_masks(self, wanted: ImageFilter) -> list[pa.ChunkedArray | None]:
        return [
            _equal(self.table["split"], wanted.split or None),
            _equal(self.table["camid"], wanted.camera),
            self._person_mask(wanted.person),
            self.table[wanted.flag] if wanted.flag and self.has_flags else None,
        ]

    def _said_masks(self, wanted: ImageFilter) -> list[pa.ChunkedArray | None]:
        slots = wanted.attributes.items() if self.has_captions else ()
        return [self._text_mask(wanted.text), *(self._slot_mask(slot, value) for slot, value in slots)]

    def _text_mask(self, text: str) -> pa.ChunkedArray | None:
        """Return where the caption or the path contains `text`, whatever its case."""
        if not text:
            return None
        found = _contains([self.table["path"]], text)
        if self.texts is not None:
            with _damage_explained(self.texts):
                found |= _contains((rows["caption"] for rows in ParquetRows(self.texts).batches("caption")), text)
        elif self.has_captions:
            found |= _contains([self.table["caption"]], text)
        return pa.chunked_array([pa.array(found)])

    def _person_mask(self, person: str) -> pa.ChunkedArray | None:
        if not person:
            return None
        by_number = _equal(self.table["pid"], int(person)) if _is_number(person) else None
        if LABEL.name not in self.table.column_names:
            return by_number if by_number is not None else _nowhere(self.table["pid"])
        by_label = pc.fill_null(_equal(self.table[LABEL.name], person), False)
        return by_label if by_number is None else pc.or_(by_label, by_number)

    def _slot_mask(self, slot: str, value: str) -> pa.ChunkedArray | None:
        column = self.table[f"attr_{slot}"]
        return pc.is_null(column) if value == UNSAID else _equal(column, value or None)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdecimal() and len(text) < 18


def _contains(column: Iterable[pa.ChunkedArray], text: str) -> NDArray[np.bool_]:
    """Return where the parts of a text column contain `text`, whatever its case."""
    said = [pc.match_substring(part, text, ignore_case=True).fill_null(False).to_numpy() for part in column]
    return np.concatenate([np.empty(0, dtype=np.bool_), *said])


def _nowhere(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.and_(pc.is_null(column), False)


def _equal(column: pa.ChunkedArray, value: str | int | None) -> pa.ChunkedArray | None:
    return None if value is None else pc.equal(column, value)


def _distinct(column: pa.ChunkedArray) -> set[str]:
    return set(pc.unique(column).drop_null().to_pylist())


class Tables:
    """The tables that were read last, by the fingerprints of their artifacts; at most `_MOST_TABLES` stay in memory."""

    def __init__(self, store: ArtifactStore, folders: Sequence[Path], *, few: int = _FEW) -> None:
        """few: images of a dataset up to which its texts and confidences stay in memory."""
        self._few = few
        self._store = store
        self._folders = folders
        self._folder_of: dict[str, Path | None] = {}
        self._kept = Recent[ImageTable](_MOST_TABLES, weight=len, heaviest=_MOST_ROWS)

    def get(self, index: Entry, captions: Entry | None, audit: Entry | None) -> ImageTable:
        """Return the table of an index with its captions and audit. Raises DataError if a file is damaged."""
        key = tuple("" if entry is None else f"{entry.key}-{entry.content}" for entry in (index, captions, audit))
        return self._kept.get(key, lambda: self._load(index, captions, audit))

    def folder_of(self, index: Entry) -> Path | None:
        """Return the folder of the images of an index, None if it is not found; reads a few rows only."""
        if index.key not in self._folder_of:
            try:
                batches = pq.ParquetFile(index.folder / IMAGES_FILE).iter_batches(_SAMPLE, columns=["path", "sha256"])
                rows = next(batches, None)
            except (OSError, pa.ArrowInvalid):
                return None
            if rows is None:
                return None
            paths, digests = (rows.column(name).to_pylist() for name in ("path", "sha256"))
            self._folder_of[index.key] = find_root(self._store, paths, digests, self._folders)
        return self._folder_of[index.key]

    def _load(self, index: Entry, captions: Entry | None, audit: Entry | None) -> ImageTable:
        table = _read(index.folder / IMAGES_FILE, _IMAGES, (LABEL.name,))
        file = None if captions is None else captions.folder / CAPTIONS_FILE
        is_long = file is not None and len(table) > self._few
        if file is not None:
            names = (*_CAPTIONS, *_SLOT_COLUMNS)
            table = _beside(table, file, [name for name in names if not (is_long and name in _ON_DEMAND)])
        if captions is not None and audit is not None:
            table = _beside(table, audit.folder / "flags.parquet", FLAGS)
        sample = table.slice(0, _SAMPLE)
        paths, digests = sample["path"].to_pylist(), [digest.hex() for digest in sample["sha256"].to_pylist()]
        root = find_root(self._store, paths, digests, self._folders)
        return ImageTable(table, root, texts=file if is_long else None)


def _read(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    with _damage_explained(path):
        names = pq.read_schema(path).names
        wanted = [*columns, *(name for name in optional if name in names)]
        table = pq.read_table(path, columns=wanted, read_dictionary=[name for name in wanted if name in _CODED])
        return pa.table({name: _held(name, table[name]) for name in wanted})


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a DataError that names it."""
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); run its stage again") from error


def _held(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Return a column as it stays in memory: digests as 32 bytes, and codes of texts as 2 bytes each."""
    if name == "sha256":
        return pa.Array.from_buffers(_DIGEST, len(column), [None, pa.py_buffer(digests_of(column))])
    joined = one_array(column)
    if name in _CODED and pa.types.is_dictionary(joined.type) and len(joined.dictionary) < _MOST_CODES:
        return pa.DictionaryArray.from_arrays(joined.indices.cast(pa.int16()), joined.dictionary)
    return joined


def _beside(table: pa.Table, path: Path, columns: Iterable[str]) -> pa.Table:
    """Return `table` with columns of a file, whose rows are those of the same images in the same order."""
    start = 0
    with _damage_explained(path):
        for rows in ParquetRows(path).batches("image_path"):
            if not rows["image_path"].equals(table["path"].slice(start, len(rows))):
                raise _others(path)
            start += len(rows)
    if start != len(table):
        raise _others(path)
    other = _read(path, [*columns])
    for name in other.column_names:
        table = table.append_column(name, other[name])
    return table


def _others(path: Path) -> DataError:
    return DataError(f"{path} lists other images than its index; run its stage again")
