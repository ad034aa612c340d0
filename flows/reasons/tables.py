"""Comparison of two tables of images or captions whose digests differ, in a few words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, SENTENCES_FILE, caption_text
from data.artifacts.store import ArtifactStore, Sidecar
from data.errors import counted
from data.splits import GALLERY, QUERY, TRAIN

_KINDS: Final = {"added": "image", "removed": "image", "replaced": "image", "relabeled": "image", "renamed": "path"}
_PARTS: Final = {"train": (TRAIN,), "test": (QUERY, GALLERY), "ranked": (QUERY, GALLERY)}
_WITHOUT_PATHS: Final = ("train", "test")
OTHER: Final = "another dataset, without a common image"
_LABELS: Final = ("split", "pid", "camid")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of images.parquet or captions.parquet. with_paths: whether the stage depends on file names."""

    rows: list[Row]
    with_paths: bool = True


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
    before, after = ({row["path"]: row for row in table.rows} for table in (old, new))
    if before.keys() != after.keys() and _is_disjoint(old, new, "sha256"):
        return [OTHER]
    counts = Counter(_difference(before[path], after[path], "") for path in before.keys() & after.keys())
    gone: dict[str, list[Row]] = defaultdict(list)
    for path in before.keys() - after.keys():
        gone[before[path]["sha256"]].append(before[path])
    for path in after.keys() - before.keys():
        twins = gone[after[path]["sha256"]]
        counts[_difference(twins.pop(), after[path], "renamed") if twins else "added"] += 1
    counts["removed"] = sum(map(len, gone.values()))
    if not (old.with_paths and new.with_paths):
        del counts["renamed"]
    found = ((counts[kind], noun, kind) for kind, noun in _KINDS.items())
    return [f"{counted(count, noun)} {kind}" for count, noun, kind in found if count]


def _is_disjoint(old: Table, new: Table, column: str) -> bool:
    """Return True if two tables with rows have no image in common, so that they are of different datasets."""
    before, after = ({row[column] for row in table.rows} for table in (old, new))
    return bool(before and after) and before.isdisjoint(after)


def _difference(old: Row, new: Row, same: str) -> str:
    if old["sha256"] != new["sha256"]:
        return "replaced"
    return same if all(old[name] == new[name] for name in _LABELS) else "relabeled"


def text_changes(old: Table, new: Table) -> list[str]:
    """Return how two sets of captions differ: "3 with another text", "2 by corrections", "1 added" and the like."""
    if _is_disjoint(old, new, "image_sha256"):
        return [OTHER]
    before, after = (_by_image(table) for table in (old, new))
    changed = _changed_texts(before, after)
    corrected = sum(map(_is_corrected, changed))
    counts = {
        "by corrections": corrected,
        "with another text": len(changed) - corrected,
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
    }
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def _by_image(captions: Table) -> dict[tuple[Any, ...], Row]:
    return {(row["image_sha256"], row["pid"], row["camid"]): row for row in captions.rows}


def _changed_texts(before: Mapping[Any, Row], after: Mapping[Any, Row]) -> list[tuple[Row, Row]]:
    pairs = [(before[key], after[key]) for key in before.keys() & after.keys()]
    return [pair for pair in pairs if len({caption_text(row["caption"]) for row in pair}) > 1]


def _is_corrected(pair: tuple[Row, Row]) -> bool:
    return any(row.get("source", "model") != "model" for row in pair)


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
    paths = set(before) & set(after) if before and after else {*before, *after}
    changed = sum(before.get(path) != after.get(path) for path in paths)
    return [f"those of {counted(changed, 'image')}"] if changed else []


def _sentences(folder: Path) -> dict[str, list[str]]:
    """Return path -> sentences in an index artifact, {} if it does not have any or is unreadable."""
    found: dict[str, list[str]] = {}
    try:
        rows = pq.read_table(folder / SENTENCES_FILE, columns=["image_path", "sentence"]).to_pylist()
    except (OSError, ValueError):
        return found
    for row in rows:
        found.setdefault(row["image_path"], []).append(row["sentence"])
    return found


def corrected_captions(old: Path, new: Path) -> int:
    """Return how many training captions of two artifact folders differ by corrections, 0 if either is unreadable."""
    before, after = (_read(folder, CAPTIONS, "train") for folder in (old, new))
    if before is None or after is None:
        return 0
    return sum(map(_is_corrected, _changed_texts(_by_image(before), _by_image(after))))


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
        rows = pq.read_table(folder / source.file, columns=[*source.columns, *extra]).to_pylist()
    except (OSError, ValueError):  # damaged: made again when a run needs it
        return None
    splits = _PARTS.get(part or "", (TRAIN, QUERY, GALLERY))
    return Table(rows=[row for row in rows if row["split"] in splits], with_paths=part not in _WITHOUT_PATHS)
