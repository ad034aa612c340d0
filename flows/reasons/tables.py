"""Comparison of two tables of images or captions whose digests differ, in a few words.

The tables are read batch by batch; at a time, two of them take about 250 bytes per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE
from data.artifacts.store import ArtifactStore, Sidecar
from data.columns.source import ParquetRows
from data.splits import GALLERY, QUERY, SPLITS, TRAIN
from flows.reasons import images, texts
from flows.reasons.rows import Table

_PARTS: Final[dict[str, tuple[str, ...]]] = {"train": (TRAIN,), "test": (QUERY, GALLERY), "ranked": (QUERY, GALLERY)}
_WITHOUT_PATHS: Final = ("train", "test")
_UNREADABLE: Final = (OSError, ValueError, KeyError)
"""Errors of reading a damaged file, which is made again when a run needs it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of table: the stages that write it, its file, the columns that it must have, and the comparison."""

    stages: tuple[str, ...]
    file: str
    columns: tuple[str, ...]
    compare: Callable[[Table, Table], list[str]]


IMAGES: Final = Source(stages=("index",), file=IMAGES_FILE, columns=images.COLUMNS, compare=images.image_changes)
CAPTIONS: Final = Source(
    stages=("caption", "correct", "caption_control"),
    file=CAPTIONS_FILE,
    columns=texts.COLUMNS,
    compare=texts.text_changes,
)


def behind(store: ArtifactStore, source: Source, old: Iterable[Any], new: Iterable[Any]) -> list[str]:
    """Return what differs between the tables of two sets of digests; an empty list if either no longer exists."""
    sidecars = [item for stage in source.stages for item in store.sidecars(stage)]
    return _compared(source, *(_named(sidecars, digests, source) for digests in (old, new)))


def between(source: Source, old: Path, new: Path) -> list[str]:
    """Return what differs between the tables in two artifact folders; an empty list if either is unreadable."""
    return _compared(source, *(_opened(folder, source, None) for folder in (old, new)))


def corrected_captions(old: Path, new: Path) -> int:
    """Return how many training captions of two artifact folders differ by corrections, 0 if either is unreadable."""
    before, after = (_opened(folder, CAPTIONS, "train") for folder in (old, new))
    if before is None or after is None:
        return 0
    try:
        return texts.changed_texts(before, after).corrected
    except _UNREADABLE:
        return 0


def _compared(source: Source, old: Table | None, new: Table | None) -> list[str]:
    if old is None or new is None:
        return []
    try:
        return source.compare(old, new)
    except _UNREADABLE:
        return []


def _named(sidecars: Sequence[Sidecar], digests: Iterable[Any], source: Source) -> Table | None:
    """Return the rows that one of `digests` covers: the whole file or the splits of one part."""
    wanted = {digest for digest in digests if isinstance(digest, str)}
    for item in sidecars:
        part = next((name for name, digest in item.contents.items() if digest in wanted), None)
        if part or item.files.get(source.file) in wanted:
            return _opened(item.folder, source, part)
    return None


def _opened(folder: Path, source: Source, part: str | None) -> Table | None:
    try:
        rows = ParquetRows(folder / source.file)
    except _UNREADABLE:
        return None
    if not set(source.columns) <= set(rows.names):
        return None
    return Table(source=rows, splits=_PARTS.get(part or "", SPLITS), with_paths=part not in _WITHOUT_PATHS)
