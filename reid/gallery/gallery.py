"""Gallery: a folder of embeddings with what is known of their images, which grows, shrinks and answers searches.

Shapes: N entries, D values of an embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import ConfigError, DataError
from data.progress import ProgressFn, silent
from data.settings import nearest as similar_texts
from data.sources.places import is_file
from reid.gallery.entry import COPIES, Entry, Float32s, Int64s, normal
from reid.gallery.index import INDEX_FROM, candidates, ensure_index
from reid.gallery.layout import HEADER, PARTS, IndexFile, Space, check_space, read_header
from reid.gallery.scan import nearest
from reid.gallery.snapshot import Snapshot
from reid.gallery.where import Where, parse_where
from reid.gallery.writer import Writer

_LABELS_SHOWN: Final = 3
_VALUES_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image of a result. rank: from 1. score: cosine similarity."""

    rank: int
    score: float
    entry: Entry


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of a search. passed: entries that the filter lets through, of `total`. index: used; None if exact."""

    hits: list[Hit]
    passed: int
    total: int
    index: IndexFile | None = None


@dataclass(frozen=True, kw_only=True)
class Added:
    """Result of an addition, in entries.

    added: new ones. updated: known ones of which more, or something else, is known now. unchanged: known ones. copies:
    given entries with the content of an earlier one, which are left out. disagreeing: copies with another label or
    camera than that one. index: built by this addition.
    """

    added: int
    updated: int
    unchanged: int
    copies: int = 0
    disagreeing: tuple[str, ...] = ()
    index: IndexFile | None = None


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Result of a removal: entries that were removed (or would be), and entries that are left.

    kept: of each entry at the given path that stays because the same bytes are at another path too, that path.
    """

    removed: int
    left: int
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a gallery contains.

    rows: entries. size_bytes: of all files. labels, cameras: distinct known ones. since, until: first and last known
    time, UTC. with_label, with_camera, with_time, with_caption: entries of which it is known.
    """

    space: Space
    rows: int
    size_bytes: int
    labels: int
    cameras: tuple[int, ...]
    since: datetime | None
    until: datetime | None
    with_label: int
    with_camera: int
    with_time: int
    with_caption: int
    index: IndexFile | None


class Gallery:
    """A gallery in a folder. Many processes may search it while one changes it; each search sees one state.

    All embeddings are of one model and mode (`space`). There is one entry per content (sha256).
    """

    def __init__(self, folder: Path) -> None:
        """Use `open` instead."""
        self.folder = folder
        self._snapshot = Snapshot.open(folder)

    @classmethod
    def open(cls, folder: Path | str, *, space: Space | None = None) -> Self:
        """Open the gallery in `folder`.

        space: if given, the gallery must be of this space, and is made if it does not exist.

        Raises:
            ConfigError: `folder` is not a gallery, is one of a newer version or of another space, or contains other
                files.
            DataError: it is damaged.
        """
        place = Path(folder).expanduser().absolute()
        if space is not None and (place / HEADER).exists():
            check_space(place, read_header(place).space, space)
        elif space is not None:
            with Writer(place, space):
                pass  # makes the gallery
        return cls(place)

    @property
    def space(self) -> Space:
        """Model, mode and width of the embeddings."""
        return self._snapshot.header.space

    def __len__(self) -> int:
        """Return the current number of entries."""
        return len(self.snapshot())

    def snapshot(self) -> Snapshot:
        """Return the current state. Raises the errors of `open` if the gallery was removed or damaged."""
        if read_header(self.folder) != self._snapshot.header:
            self._snapshot = Snapshot.open(self.folder)
        return self._snapshot

    def add(
        self,
        entries: Sequence[Entry],
        embeddings_ND: Float32s,
        *,
        index_from: int = INDEX_FROM,
        progress: ProgressFn = silent,
    ) -> Added:
        """Add entries with their embeddings; all are on disk when this returns.

        An entry whose content is known is not added again: what it knows replaces what was known, and what it does not
        know stays. An embedding of a known content is replaced only if the camera differs.

        Args:
            entries: N entries.
            embeddings_ND: float32 [N, D] of length one, of the gallery's model and mode.
            index_from: number of entries from which an index is built (`reid.gallery.index`).
            progress: called while an index is built.

        Raises:
            ConfigError: the shape is wrong, or another process is changing the gallery.
            DataError: an embedding is not finite or not of length one, or the gallery is damaged.
            ClipScgiError: the disk is full; the gallery has all of the new entries or none of them.
        """
        given = distinct(entries)
        kept = given.entries
        with Writer(self.folder) as writer:
            known = writer.snapshot.rows_of(pa.array([entry.sha256 for entry in kept], pa.string()))
            fresh = known < 0
            moved = ~fresh & other_camera(writer.snapshot, kept, known)
            if embeddings_ND.shape != (len(entries), self.space.width):
                raise ConfigError(
                    f"the embeddings have the shape {list(embeddings_ND.shape)}; expected "
                    f"{[len(entries), self.space.width]}"
                )
            rows = np.asarray(given.rows, np.int64)
            writer.append(*_chosen(kept, embeddings_ND[rows], fresh))
            writer.replace_embeddings(known[moved], embeddings_ND[rows][moved])
            updated = writer.update(_where(kept, ~fresh), known[~fresh])
            writer.merge()
            index = ensure_index(writer, index_from, progress)
        return Added(
            added=int(fresh.sum()),
            updated=updated,
            unchanged=len(kept) - int(fresh.sum()) - updated,
            copies=given.copies,
            disagreeing=given.disagreeing,
            index=index,
        )

    def remove(
        self,
        *,
        label: str | None = None,
        path: Path | str | None = None,
        where: str | None = None,
        dry_run: bool = False,
        index_from: int = INDEX_FROM,
        progress: ProgressFn = silent,
    ) -> Removed:
        """Remove the entries that fit all that is given; when this returns, no file of the gallery has their bytes.

        An image whose bytes were added from several paths is removed by any of them, unless a file still exists at one
        that does not fit: then the entry stays with that path, and the fitting ones are removed from it.

        The files are deleted, not overwritten, and programs that still search the former state keep it in memory until
        they end. An index is built anew, because it depends on all entries.

        Args:
            label: the label of a person, exactly.
            path: an image, or a folder for all images below it, as they were added; relative to the working directory.
            where: a filter (`reid.gallery.where`).
            dry_run: only count them.
            index_from: see `add`.
            progress: see `add`.

        Raises:
            ConfigError: nothing or an empty text is given, `where` is not a filter, or another process is changing the
                gallery.
            ClipScgiError: the disk is full; nothing was removed.
        """
        if label is None and path is None and where is None:
            raise ConfigError("remove: give what to remove: a label, a path, or a filter such as time < 2026-01-01")
        for name, given in (("label", label), ("path", path), ("where", where)):
            if given is not None and not str(given):
                raise ConfigError(f"remove: {name} is empty, which would not say what to remove; give a value")
        wanted = parse_where(where) if where is not None else None
        if dry_run:
            snapshot = self.snapshot()
            plan = _removal(snapshot, label, path, wanted)
            count = int(plan.mask_N.sum())
            return Removed(removed=count, left=len(snapshot) - count, kept=plan.kept)
        with Writer(self.folder) as writer:
            plan = _removal(writer.snapshot, label, path, wanted)
            writer.replace_paths(plan.entries, plan.rows)
            removed = writer.remove(plan.mask_N)
            ensure_index(writer, index_from, progress)
            return Removed(removed=removed, left=len(writer.snapshot), kept=plan.kept)

    def search(self, query_D: Float32s, *, top: int = 10, where: str | None = None, exact: bool = False) -> Found:
        """Return the `top` entries nearest to an embedding, the nearest first; equal ones in the order of the gallery.

        The search is exact, except that a large gallery without a filter is searched by its index.

        Args:
            query_D: float32 [D] or [1, D], of the gallery's model and mode (`reid.gallery.images.query_embedding`).
            top: number of hits; fewer if the gallery, or what the filter lets through, is smaller.
            where: a filter, such as "camera=3 and time >= 2026-01-01" (`reid.gallery.where`).
            exact: do not use the index.

        Raises:
            ConfigError: `top` is less than 1, the query has another shape or is zero or not finite, or `where` is not a
                filter.
            DataError: the gallery is damaged.
        """
        if top < 1:
            raise ConfigError(f"search: top must be at least 1 (given: {top})")
        wanted = parse_where(where) if where is not None else None
        snapshot = self.snapshot()
        query_D = _unit_query(query_D, snapshot.header.space)
        selected: Int64s | None = None
        index = snapshot.header.index if wanted is None and not exact else None
        if wanted is not None:
            selected = np.flatnonzero(wanted.mask(snapshot.table))
        elif index is not None:
            selected = candidates(snapshot, query_D)
        found = nearest(snapshot.blocks, query_D, top, selected)
        places = zip(found.scores.tolist(), snapshot.take(found.rows), strict=True)
        return Found(
            hits=[Hit(rank=rank, score=score, entry=entry) for rank, (score, entry) in enumerate(places, start=1)],
            passed=len(snapshot) if wanted is None or selected is None else len(selected),
            total=len(snapshot),
            index=index,
        )

    def info(self) -> Info:
        """Return what the gallery contains."""
        snapshot = self.snapshot()
        table = snapshot.table
        times = pc.min_max(table["time"]).as_py()
        files = [self.folder / HEADER, *(self.folder / PARTS / name for name in snapshot.header.names)]
        known = {name: len(table) - table[name].null_count for name in ("label", "camera", "time", "caption")}
        return Info(
            space=snapshot.header.space,
            rows=len(table),
            size_bytes=sum(path.stat().st_size for path in files),
            labels=pc.count_distinct(table["label"]).as_py(),
            cameras=tuple(sorted(table["camera"].unique().drop_null().to_pylist())),
            since=times["min"],
            until=times["max"],
            with_label=known["label"],
            with_camera=known["camera"],
            with_time=known["time"],
            with_caption=known["caption"],
            index=snapshot.header.index,
        )

    def values(self, column: str) -> str:
        """Return the values of a column in words, for messages: the most frequent, or the least and the greatest."""
        stored = self.snapshot().table[column].drop_null()
        if not len(stored):
            return "unknown for all images"
        if pa.types.is_timestamp(stored.type) or pa.types.is_floating(stored.type):
            ends = pc.min_max(stored).as_py()
            return f"from {ends['min']} to {ends['max']}"
        counts = Counter(stored.to_pylist())
        shown = ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(_VALUES_SHOWN))
        return f"{shown}, ..." if len(counts) > _VALUES_SHOWN else shown

    def similar_labels(self, label: str) -> list[str]:
        """Return labels of the gallery that are spelled like `label`, for messages."""
        labels = self.snapshot().table["label"].unique().drop_null().to_pylist()
        return similar_texts(normal(label), labels)[:_LABELS_SHOWN]


@dataclass(frozen=True, kw_only=True)
class Distinct:
    """Given entries without copies. rows: their places; entries: they, with the paths of their copies.

    copies, disagreeing: see `Added`.
    """

    rows: list[int]
    entries: list[Entry]
    copies: int
    disagreeing: tuple[str, ...]


def distinct(entries: Sequence[Entry]) -> Distinct:
    """Return the first row of each content among `entries`."""
    first: dict[str, Entry] = {}
    paths: dict[str, dict[str, None]] = {}
    rows, disagreeing = list[int](), list[str]()
    for row, entry in enumerate(entries):
        former = first.setdefault(entry.sha256, entry)
        paths.setdefault(entry.sha256, {}).update(dict.fromkeys(entry.paths))
        if former is entry:
            rows.append(row)
        elif (former.label, former.camera) != (entry.label, entry.camera):
            disagreeing.append(entry.path)
    kept = [replace(entry, copies=tuple(paths[digest])[1:]) for digest, entry in first.items()]
    return Distinct(rows=rows, entries=kept, copies=len(entries) - len(rows), disagreeing=tuple(disagreeing))


def other_camera(snapshot: Snapshot, entries: Sequence[Entry], rows: Int64s) -> NDArray[np.bool_]:
    """Return for each entry whether it names another camera than its row; False for the row -1."""
    cameras = snapshot.table["camera"].combine_chunks()
    stored = cameras.take(pa.array(np.maximum(rows, 0))).to_pylist() if len(cameras) else [None] * len(rows)
    return np.array(
        [row >= 0 and entry.camera not in (None, old) for entry, row, old in zip(entries, rows, stored, strict=True)],
        np.bool_,
    )


def _where(entries: Sequence[Entry], mask: NDArray[np.bool_]) -> list[Entry]:
    return [entry for entry, chosen in zip(entries, mask, strict=True) if chosen]


def _chosen(entries: Sequence[Entry], embeddings_ND: Float32s, mask: NDArray[np.bool_]) -> tuple[list[Entry], Float32s]:
    return _where(entries, mask), embeddings_ND[mask]


def _fitting(snapshot: Snapshot, label: str | None, path: Path | str | None, where: Where | None) -> NDArray[np.bool_]:
    """Return for each entry whether it fits all that is given, [N]."""
    table = snapshot.table
    mask = np.ones(len(table), np.bool_) if where is None else where.mask(table)
    if label is not None:
        mask &= _numpy(pc.equal(table["label"], normal(label)))
    if path is not None:
        mask &= _at_any(table, _places(path))
    return mask


class _Removal(NamedTuple):
    """What to do: remove the entries of `mask_N` [N]; the entries of `rows` stay as `entries`, with fewer paths."""

    mask_N: NDArray[np.bool_]
    rows: Int64s
    entries: list[Entry]

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.entries)


def _removal(snapshot: Snapshot, label: str | None, path: Path | str | None, where: Where | None) -> _Removal:
    mask, rows, entries = _fitting(snapshot, label, path, where), list[int](), list[Entry]()
    if path is not None:
        with_copies = np.flatnonzero(mask & _numpy(pc.is_valid(snapshot.table[COPIES])))
        for row, entry in zip(with_copies.tolist(), snapshot.take(with_copies), strict=True):
            others = [name for name in entry.paths if not _is_at(name, _places(path))]
            existing = [name for name in others if is_file(Path(name))]
            if existing:
                copies = tuple(name for name in others if name != existing[0])
                rows.append(row)
                entries.append(replace(entry, path=existing[0], copies=copies))
    mask[rows] = False
    return _Removal(mask, np.array(rows, np.int64), entries)


def _places(path: Path | str) -> set[str]:
    """Return the absolute forms of a path: as it is written, and without links."""
    place = Path(path).expanduser()
    return {str(place.absolute()), str(place.resolve())}


def _is_at(path: str, places: set[str]) -> bool:
    return any(path == name or path.startswith(f"{name.rstrip('/')}/") for name in places)


def _at_any(table: pa.Table, places: set[str]) -> NDArray[np.bool_]:
    """Return for each entry whether one of its paths is a place of `places` or below it, [N]."""
    mask = _at(table["path"], places)
    start = 0
    for copies in table[COPIES].chunks:
        fits = _at(pa.chunked_array([copies.flatten()]), places)
        mask[start + pc.list_parent_indices(copies).to_numpy()[fits]] = True
        start += len(copies)
    return mask


def _at(paths: pa.ChunkedArray, places: set[str]) -> NDArray[np.bool_]:
    """Return for each path whether it is a place of `places` or below it."""
    mask = np.zeros(len(paths), np.bool_)
    for name in places:
        mask |= _numpy(pc.equal(paths, name)) | _numpy(pc.starts_with(paths, f"{name.rstrip('/')}/"))
    return mask


def _numpy(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.fill_null(values, False).to_numpy(), np.bool_)


def _unit_query(query: Float32s, space: Space) -> Float32s:
    query_D = np.asarray(query, np.float32)
    if query_D.shape not in ((space.width,), (1, space.width)):
        raise ConfigError(
            f"search: the query has the shape {list(query_D.shape)}; expected [{space.width}], an embedding of {space}"
        )
    length = float(np.linalg.norm(query_D))
    if not np.isfinite(length) or not length:
        raise DataError("search: the query's embedding is zero, NaN or infinite, so nothing can be compared with it")
    return np.ascontiguousarray(query_D.reshape(-1) / np.float32(length))
