"""Comparison of two tables of images or captions whose digests differ, in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, SENTENCES_FILE, caption_texts
from data.artifacts.store import ArtifactStore, Sidecar
from data.columns.digests import Digests, digests_of, joined, numbered, places, positions
from data.columns.distinct import one_array
from data.columns.source import ParquetRows
from data.columns.texts import Texts
from data.errors import counted
from data.people import Mask
from data.splits import GALLERY, QUERY, TRAIN

_KINDS: Final = {"added": "image", "removed": "image", "replaced": "image", "relabeled": "image", "renamed": "path"}
_PARTS: Final = {"train": (TRAIN,), "test": (QUERY, GALLERY), "ranked": (QUERY, GALLERY)}
_WITHOUT_PATHS: Final = ("train", "test")
OTHER: Final = "another dataset, without a common image"
_LABELS: Final = ("split", "pid", "camid")

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of images.parquet or captions.parquet. with_paths: whether the stage depends on file names."""

    rows: pa.Table
    with_paths: bool = True

    @cached_property
    def digests(self) -> Digests:
        """The sha256 of the images, [N]."""
        return digests_of(self.rows["sha256" if "sha256" in self.rows.column_names else "image_sha256"])

    def numbers(self, name: str) -> Ints:
        """Return a column of integers, [N]."""
        found: Ints = self.rows[name].to_numpy()
        return found


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of table: the stages that write it, its file, the columns to compare, and the comparison.

    extra: columns that are compared if the file has them.
    """

    stages: tuple[str, ...]
    file: str
    columns: tuple[str, ...]
    compare: Callable[[Table, Table], list[str]]
    extra: tuple[str, ...] = ()


def image_changes(old: Table, new: Table) -> list[str]:
    """Return how two sets of images differ: "2 images added", "1 path renamed" and the like.

    Images are matched by path; those with an added or removed path are matched by their bytes.
    """
    paths = [Texts(table.rows["path"]) for table in (old, new)]
    place = paths[1].places_in(paths[0])  # of each new image among the old ones
    gone = np.setdiff1d(np.arange(len(paths[0])), place)
    added = np.flatnonzero(place < 0)
    if (len(gone) or len(added)) and _is_disjoint(old, new):
        return [OTHER]
    kept = np.flatnonzero(place >= 0)
    counts = _differences(old, place[kept], new, kept, "")
    twin = places(numbered(old.digests[gone]), numbered(new.digests[added]))
    counts += _differences(old, gone[twin[twin >= 0]], new, added[twin >= 0], "renamed")
    counts["added"] = int((twin < 0).sum())
    counts["removed"] = len(gone) - int((twin >= 0).sum())
    if not (old.with_paths and new.with_paths):
        del counts["renamed"]
    found = ((counts[kind], noun, kind) for kind, noun in _KINDS.items())
    return [f"{counted(count, noun)} {kind}" for count, noun, kind in found if count]


def _is_disjoint(old: Table, new: Table) -> bool:
    """Return True if two tables with rows have no image in common, so that they are of different datasets."""
    return len(old.rows) > 0 and len(new.rows) > 0 and not np.isin(new.digests, old.digests).any()


def _differences(old: Table, old_at: Ints, new: Table, new_at: Ints, same: str) -> Counter[str]:
    """Count the differences of pairs of images, given by their rows. same: the name of none."""
    is_replaced = old.digests[old_at] != new.digests[new_at]
    is_relabeled = old.numbers("pid")[old_at] != new.numbers("pid")[new_at]
    is_relabeled |= old.numbers("camid")[old_at] != new.numbers("camid")[new_at]
    splits = [Texts(table.rows["split"])[at] for table, at in ((old, old_at), (new, new_at))]
    is_relabeled |= _differ(*splits)
    is_relabeled &= ~is_replaced
    replaced, relabeled = int(is_replaced.sum()), int(is_relabeled.sum())
    return Counter({"replaced": replaced, "relabeled": relabeled, same: len(old_at) - replaced - relabeled})


def _differ(old: Texts, new: Texts) -> Mask:
    """Return whether the texts of each row of two columns differ, [N]."""
    found: Mask = pc.not_equal(old.array, new.array).to_numpy(zero_copy_only=False)
    return found


def text_changes(old: Table, new: Table) -> list[str]:
    """Return how two sets of captions differ: "3 with another text", "2 by corrections", "1 added" and the like."""
    if _is_disjoint(old, new):
        return [OTHER]
    changed = _changed_texts(old, new)
    counts = {
        "by corrections": changed.corrected,
        "with another text": changed.texts - changed.corrected,
        "added": changed.added,
        "removed": changed.removed,
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


class _TextChanges(NamedTuple):
    """Numbers of captions with another text, of those with a correction, and of captions of one table only."""

    texts: int
    corrected: int
    added: int
    removed: int


def _changed_texts(old: Table, new: Table) -> _TextChanges:
    """Compare captions; images with the same bytes and labels are one."""
    before, after = (
        np.unique(joined(table.digests, table.numbers("pid"), table.numbers("camid")), return_index=True)
        for table in (old, new)
    )
    place = positions(before[0], after[0])
    pairs = [(old, before[1][place[place >= 0]]), (new, after[1][place >= 0])]
    changed = _differ(*(_captions(table, at) for table, at in pairs))
    is_corrected = np.logical_or.reduce([_is_corrected(table, at) for table, at in pairs])
    return _TextChanges(
        texts=int(changed.sum()),
        corrected=int((changed & is_corrected).sum()),
        added=int((place < 0).sum()),
        removed=len(before[0]) - int((place >= 0).sum()),
    )


def _captions(table: Table, at: Ints) -> Texts:
    """Return the captions of some rows, as training reads them."""
    return Texts(caption_texts(one_array(table.rows["caption"].take(pa.array(at)))))


def _is_corrected(table: Table, at: Ints) -> Mask:
    """Return whether the captions of some rows are not the model's."""
    if "source" not in table.rows.column_names:
        return np.zeros(len(at), dtype=np.bool_)
    found: Mask = pc.not_equal(table.rows["source"].take(pa.array(at)), "model").to_numpy()
    return found


IMAGES: Final = Source(stages=("index",), file=IMAGES_FILE, columns=("path", "sha256", *_LABELS), compare=image_changes)
CAPTIONS: Final = Source(
    stages=("caption", "correct", "caption_control"),
    file=CAPTIONS_FILE,
    columns=("image_sha256", "caption", *_LABELS),
    compare=text_changes,
    extra=("source",),
)


def behind(store: ArtifactStore, source: Source, old: Iterable[Any], new: Iterable[Any]) -> list[str]:
    """Return what differs between the tables of two sets of digests; an empty list if either no longer exists."""
    sidecars = [item for stage in source.stages for item in store.sidecars(stage)]
    before, after = (_named(sidecars, digests, source) for digests in (old, new))
    return source.compare(before, after) if before and after else []


def between(source: Source, old: Path, new: Path) -> list[str]:
    """Return what differs between the tables in two artifact folders; an empty list if either is unreadable."""
    before, after = (_read(folder, source, None) for folder in (old, new))
    return source.compare(before, after) if before and after else []


def sentence_changes(old: Path, new: Path) -> list[str]:
    """Return how the sentences of the images that two index artifacts share differ; an empty list if they do not."""
    before, after = (_sentences(folder) for folder in (old, new))
    if not len(before.paths) or not len(after.paths):
        changed = len(before.paths) + len(after.paths)
    else:
        place = after.paths.places_in(before.paths)
        changed = int(_differ(before.texts[place[place >= 0]], after.texts[place >= 0]).sum())
    return [f"those of {counted(changed, 'image')}"] if changed else []


class _Sentences(NamedTuple):
    """The paths of the images with sentences, and all sentences of each image as one text."""

    paths: Texts
    texts: Texts


def _sentences(folder: Path) -> _Sentences:
    """Return the sentences in an index artifact, none if it does not have any or is unreadable."""
    try:
        rows = pq.read_table(folder / SENTENCES_FILE, columns=["image_path", "sentence"])
    except (OSError, ValueError):
        return _Sentences(Texts([]), Texts([]))
    paths, sentences = Texts(rows["image_path"]), Texts(rows["sentence"])
    starts = np.flatnonzero(np.append(True, _differ(paths[1:], paths[:-1]))[: len(paths)])
    lists = pa.ListArray.from_arrays(pa.array(np.append(starts, len(paths)), pa.int32()), sentences.array)
    return _Sentences(paths[starts], Texts(pc.binary_join(lists, pa.scalar("\0", pa.large_string()))))


def corrected_captions(old: Path, new: Path) -> int:
    """Return how many training captions of two artifact folders differ by corrections, 0 if either is unreadable."""
    before, after = (_read(folder, CAPTIONS, "train") for folder in (old, new))
    if before is None or after is None:
        return 0
    return _changed_texts(before, after).corrected


def _named(sidecars: Sequence[Sidecar], digests: Iterable[Any], source: Source) -> Table | None:
    """Return the rows that one of `digests` covers: the whole file or the splits of one part."""
    wanted = {digest for digest in digests if isinstance(digest, str)}
    for item in sidecars:
        part = next((name for name, digest in item.contents.items() if digest in wanted), None)
        if part or item.files.get(source.file) in wanted:
            return _read(item.folder, source, part)
    return None


def _read(folder: Path, source: Source, part: str | None) -> Table | None:
    try:
        extra = [name for name in source.extra if name in pq.read_schema(folder / source.file).names]
        splits = pa.array(_PARTS.get(part or "", (TRAIN, QUERY, GALLERY)))
        batches = ParquetRows(folder / source.file).batches(*source.columns, *extra)
        rows = pa.concat_tables(batch.filter(pc.is_in(batch["split"], value_set=splits)) for batch in batches)
    except (OSError, ValueError, KeyError):  # damaged: made again when a run needs it
        return None
    return Table(rows=rows, with_paths=part not in _WITHOUT_PATHS)
