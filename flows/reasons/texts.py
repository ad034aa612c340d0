"""How two sets of captions, or the sentences of two datasets, differ, in a few words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts.contents import SENTENCES_FILE, caption_texts
from data.columns.digests import joined, positions
from data.columns.distinct import one_array
from data.columns.source import ParquetRows
from data.columns.texts import Texts
from data.errors import counted
from flows.reasons.images import OTHER
from flows.reasons.rows import SHORT, Mask, Short, Table, concatenated, halves, is_disjoint, short_digests

COLUMNS: Final = ("image_sha256", "caption", "pid", "camid", "split")
EXTRA: Final = "source"
"""Column of captions with corrections."""


class Changed(NamedTuple):
    """Numbers of captions with another text, of those with a correction, and of captions of one table only."""

    texts: int
    corrected: int
    added: int
    removed: int


class _Captions(NamedTuple):
    """Captions as 49 bytes each, sorted by image and labels; images with the same bytes and labels are one.

    keys: the first half of the digest of the image, pid and camid as `joined` bytes. texts: what training reads.
    """

    keys: Short
    texts: Short
    is_corrected: Mask

    @classmethod
    def read(cls, table: Table) -> _Captions:
        names = [*COLUMNS[:-1], *([EXTRA] if EXTRA in table.source.names else [])]
        return cls(*concatenated(map(_captions, table.batches(*names)))).first_of_each()

    def first_of_each(self) -> _Captions:
        order = np.argsort(self.keys, kind="stable")
        keys = self.keys[order]
        is_first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        order = order[is_first]
        return _Captions(keys[is_first], self.texts[order], self.is_corrected[order])

    def images(self) -> Short:
        """Return the first half of the digest of each image, sorted."""
        raw = self.keys.view(np.uint8).reshape(len(self.keys), -1)
        return np.ascontiguousarray(raw[:, :SHORT]).reshape(-1).view(f"S{SHORT}")


def _captions(rows: pa.Table) -> tuple[Short, Short, Mask]:
    images = halves(rows["image_sha256"])
    texts = short_digests(caption_texts(one_array(rows["caption"])))
    is_corrected = np.zeros(len(rows), dtype=np.bool_)
    if EXTRA in rows.column_names:
        is_corrected = pc.not_equal(rows[EXTRA], "model").to_numpy()
    return joined(images, rows["pid"].to_numpy(), rows["camid"].to_numpy()), texts, is_corrected


def text_changes(old: Table, new: Table) -> list[str]:
    """Return how two sets of captions differ: "3 with another text", "2 by corrections", "1 added" and the like."""
    before, after = _Captions.read(old), _Captions.read(new)
    if is_disjoint(before.images(), after.images()):
        return [OTHER]
    changed = _compared(before, after)
    counts = {
        "by corrections": changed.corrected,
        "with another text": changed.texts - changed.corrected,
        "added": changed.added,
        "removed": changed.removed,
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def changed_texts(old: Table, new: Table) -> Changed:
    """Compare two sets of captions."""
    return _compared(_Captions.read(old), _Captions.read(new))


def _compared(before: _Captions, after: _Captions) -> Changed:
    place = positions(before.keys, after.keys)
    is_known = place >= 0
    place = place[is_known]
    is_changed = before.texts[place] != after.texts[is_known]
    is_corrected = before.is_corrected[place] | after.is_corrected[is_known]
    return Changed(
        texts=int(is_changed.sum()),
        corrected=int((is_changed & is_corrected).sum()),
        added=int((~is_known).sum()),
        removed=len(before.keys) - len(place),
    )


def sentence_changes(old: Path, new: Path) -> list[str]:
    """Return how the sentences of the images that two index artifacts share differ; an empty list if they do not."""
    before, after = (_Sentences.read(folder) for folder in (old, new))
    if not len(before.paths) or not len(after.paths):
        changed = len(before.paths) + len(after.paths)
    else:
        place = positions(before.paths, after.paths)
        changed = int((before.texts[place[place >= 0]] != after.texts[place >= 0]).sum())
    return [f"those of {counted(changed, 'image')}"] if changed else []


class _Sentences(NamedTuple):
    """The paths of the images with sentences, sorted, and all sentences of each image as one text."""

    paths: Short
    texts: Short

    @classmethod
    def read(cls, folder: Path) -> _Sentences:
        """Return the sentences in an index artifact, none if it does not have any or is unreadable."""
        none = np.empty(0, dtype=f"S{SHORT}")
        try:
            rows = ParquetRows(folder / SENTENCES_FILE).batches("image_path", "sentence")
            paths, texts = concatenated([(none, none), *map(_joined_per_image, whole_images(rows))])
        except (OSError, ValueError, KeyError):
            return cls(none, none)
        order = np.argsort(paths, kind="stable")
        return cls(paths[order], texts[order])


def whole_images(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows again so that the rows of one image are in one table."""
    held: pa.Table | None = None
    for batch in batches:
        rows = batch if held is None else pa.concat_tables([held, batch])
        if len(rows):
            last = int(_starts(Texts(rows["image_path"]))[-1])
            yield rows.slice(0, last)
            held = rows.slice(last)
    if held is not None:
        yield held


def _joined_per_image(rows: pa.Table) -> tuple[Short, Short]:
    paths, sentences = Texts(rows["image_path"]), Texts(rows["sentence"])
    starts = _starts(paths)
    lists = pa.ListArray.from_arrays(pa.array(np.append(starts, len(paths)), pa.int32()), sentences.array)
    said = pc.binary_join(lists, pa.scalar("\0", pa.large_string()))
    return short_digests(paths[starts].array), short_digests(said)


def _starts(paths: Texts) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the first row of each image."""
    differs = pc.not_equal(paths[1:].array, paths[: max(len(paths) - 1, 0)].array).to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.append(True, differs)[: len(paths)])
