"""Changes of a gallery: one process at a time, each change atomic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.errors import ConfigError, DataError
from data.files import full_disk_explained
from data.process import locks
from data.slots import SLOTS
from reid.gallery.entry import (
    CAPTION_COLUMNS,
    COPIES,
    EMBEDDING,
    SOURCE_COLUMNS,
    Entry,
    Float32s,
    Int64s,
    table_of,
    with_embeddings,
)
from reid.gallery.layout import (
    HEADER,
    LOCK,
    Header,
    IndexFile,
    Part,
    Space,
    check_new,
    check_space,
    read_header,
    remove_leftovers,
    write_header,
    write_part,
)
from reid.gallery.snapshot import Snapshot

PART_ROWS: Final = 262_144
"""Parts are merged up to this many rows."""
_STEP_ROWS: Final = 65_536
_UNIT: Final = 1e-3


class Writer:
    """The only writer of a gallery while it is open, as a context manager. Each method is one atomic change.

    Opening it removes what a killed writer left behind. If it made the gallery and ends with an error before an entry
    is added, there is no gallery afterwards (the file `lock` stays, since another process may be opening it).
    """

    _is_new = False

    def __init__(self, folder: Path, space: Space | None = None) -> None:
        """Lock the gallery in `folder`. space: of the embeddings to add; makes the gallery if it does not exist.

        Raises ConfigError if another process is writing, if the gallery has embeddings of another space, if the folder
        contains other files, or if it is not a gallery and `space` is None; DataError if it is damaged.
        """
        self.folder = folder
        if space is None or (folder / HEADER).exists():
            read_header(folder)
        else:
            check_new(folder)
        lock = locks.try_lock(folder / LOCK)
        if lock is None:
            raise ConfigError(f"another process is changing the gallery {folder}; run again when it has finished")
        self._lock = lock
        try:
            with full_disk_explained(folder, f"the gallery {folder} could not be changed"):
                self._open(space)
        except BaseException:
            lock.close()
            raise

    def _open(self, space: Space | None) -> None:
        if space is not None and not (self.folder / HEADER).exists():
            write_header(self.folder, Header(space=space))
            self._is_new = True
        header = read_header(self.folder)
        if space is not None:
            check_space(self.folder, header.space, space)
        remove_leftovers(self.folder, header)
        self._load(header)

    def _load(self, header: Header) -> None:
        self.header = header
        self.snapshot = Snapshot(self.folder, header)

    def __enter__(self) -> Self:
        """Return the writer, which has the lock already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        try:
            if error is not None and self._is_new and not self.header.rows:
                remove_leftovers(self.folder, Header(space=self.header.space))
                (self.folder / HEADER).unlink(missing_ok=True)
        finally:
            self._lock.close()

    def append(self, entries: Sequence[Entry], embeddings_ND: Float32s) -> None:
        """Add entries whose content the gallery does not have; they are on disk when this returns.

        Raises DataError if an embedding is not finite or does not have length one.
        """
        if not entries:
            return
        _check_embeddings(entries, embeddings_ND, self.header.space.width)
        table = with_embeddings(table_of(entries), embeddings_ND)
        with full_disk_explained(self.folder, f"{len(entries):,} images could not be added to {self.folder}"):
            part = write_part(self.folder, table)
            self._commit(replace(self.header, parts=(*self.header.parts, part)))

    def update(self, entries: Sequence[Entry], rows: Int64s) -> int:
        """Replace what the gallery knows of `rows` by what `entries` know; return the number of changed entries.

        What an entry does not know stays as it was, and a former path stays as that of a copy. A caption or an
        attribute replaces the former caption with all of its attributes.
        """
        changed_rows, changed = list[Int64s](), list[pa.Table]()
        for start in range(0, len(entries), _STEP_ROWS):
            some = rows[start : start + _STEP_ROWS]
            merged, differs = self._merged(table_of(entries[start : start + _STEP_ROWS]), some)
            changed_rows.append(some[differs])
            changed.append(merged.filter(pa.array(differs)))
        if not (count := sum(map(len, changed_rows))):
            return 0
        self._replace(np.concatenate(changed_rows), pa.concat_tables(changed))
        return count

    def _merged(self, new: pa.Table, rows: Int64s) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Return the merged entries, and whether each differs from the stored one."""
        old = self.snapshot.table.take(pa.array(rows, pa.int64()))
        is_said = pc.is_valid(new["caption"])
        for slot in SLOTS:
            is_said = pc.or_(is_said, pc.is_valid(new[slot]))
        columns = {column.name: pc.coalesce(new[column.name], old[column.name]) for column in SOURCE_COLUMNS}
        columns |= {column.name: pc.if_else(is_said, new[column.name], old[column.name]) for column in CAPTION_COLUMNS}
        differs = np.zeros(len(rows), np.bool_)
        for name, merged in columns.items():
            same = pc.fill_null(pc.equal(merged, old[name]), False)
            both_null = pc.and_(pc.is_null(merged), pc.is_null(old[name]))
            differs |= ~pc.or_(same, both_null).to_numpy()
        stored = old[COPIES].to_pylist()
        paths = (new["path"].to_pylist(), new[COPIES].to_pylist(), old["path"].to_pylist(), stored)
        copies = [_joined(*row) for row in zip(*paths, strict=True)]
        columns[COPIES] = pa.array(copies, pa.list_(pa.string()))
        differs |= np.array([one != other for one, other in zip(copies, stored, strict=True)], np.bool_)
        return pa.table(columns, schema=new.schema), differs

    def replace_paths(self, entries: Sequence[Entry], rows: Int64s) -> None:
        """Replace the entries of `rows`, of which only the paths differ."""
        if entries:
            self._replace(rows, table_of(entries))

    def replace_embeddings(self, rows: Int64s, embeddings_ND: Float32s) -> None:
        """Replace the embeddings of `rows`. Raises DataError as `append` does."""
        if len(rows):
            _check_embeddings(self.snapshot.take(rows), embeddings_ND, self.header.space.width)
            kept = self.snapshot.table.take(pa.array(rows, pa.int64()))
            self._replace(rows, with_embeddings(kept, embeddings_ND), keep_index=False)

    def _replace(self, rows: Int64s, new: pa.Table, *, keep_index: bool = True) -> None:
        """Rewrite the parts that contain `rows`, with the rows of `new` in their places."""
        parts, start = list[Part](), 0
        with full_disk_explained(self.folder, f"the entries of {self.folder} could not be changed"):
            for part, table in zip(self.header.parts, self.snapshot.part_tables(), strict=True):
                here = np.flatnonzero((rows >= start) & (rows < start + part.rows))
                start += part.rows
                if not len(here):
                    parts.append(part)
                    continue
                local = rows[here] - (start - part.rows)
                fresh = new.take(pa.array(here))
                if EMBEDDING not in fresh.column_names:
                    kept = self.snapshot.embeddings(rows[here])
                    fresh = with_embeddings(fresh, kept)
                order = np.arange(part.rows)
                order[local] = part.rows + np.arange(len(here))
                parts.append(write_part(self.folder, _taken([table, fresh], order)))
            self._commit(replace(self.header, parts=tuple(parts), index=self.header.index if keep_index else None))

    def remove(self, mask_N: NDArray[np.bool_]) -> int:
        """Remove the entries that `mask_N` marks, and their bytes; return their number.

        The parts that contained them are written anew without them, and the old files are deleted, as is the index.
        """
        count = int(mask_N.sum())
        if not count:
            return 0
        parts, start = list[Part](), 0
        with full_disk_explained(self.folder, f"nothing was removed from {self.folder}"):
            for part, table in zip(self.header.parts, self.snapshot.part_tables(), strict=True):
                keep = ~mask_N[start : start + part.rows]
                start += part.rows
                if keep.all():
                    parts.append(part)
                elif keep.any():
                    parts.append(write_part(self.folder, _taken([table], np.flatnonzero(keep))))
            self._commit(replace(self.header, parts=tuple(parts), index=None))
        return count

    def merge(self) -> None:
        """Join small parts, so that the number of files stays small however often entries are added.

        The parts that the index covers stay as they are.
        """
        covered = self.header.index.rows if self.header.index else 0
        parts, tables = list(self.header.parts), self.snapshot.part_tables()
        first = int(np.searchsorted(np.cumsum([part.rows for part in parts]), covered, side="right"))
        groups: list[list[int]] = [[number] for number in range(len(parts))]
        while len(groups) > first + 1 and _should_join(*(_size(parts, group) for group in groups[-2:])):
            groups[-2:] = [groups[-2] + groups[-1]]
        if all(len(group) == 1 for group in groups):
            return
        with full_disk_explained(self.folder, f"the files of {self.folder} could not be joined"):
            joined = tuple(self._one_part([parts[n] for n in group], [tables[n] for n in group]) for group in groups)
            self._commit(replace(self.header, parts=joined))

    def _one_part(self, parts: Sequence[Part], tables: Sequence[pa.Table]) -> Part:
        return parts[0] if len(parts) == 1 else write_part(self.folder, pa.concat_tables(tables))

    def set_index(self, index: IndexFile | None) -> None:
        """Use another index file, or none."""
        self._commit(replace(self.header, index=index))

    def _commit(self, header: Header) -> None:
        """Make `header` the gallery, and delete the files that it does not name."""
        write_header(self.folder, header)
        self._load(header)
        remove_leftovers(self.folder, header)


def _joined(path: str, copies: list[str] | None, old_path: str, old_copies: list[str] | None) -> list[str] | None:
    """Return the paths of an entry besides `path`: those known so far, and the new ones."""
    known = dict.fromkeys([*(old_copies or ()), old_path, *(copies or ())])
    known.pop(path, None)
    return list(known) or None


def _size(parts: Sequence[Part], group: Sequence[int]) -> int:
    return sum(parts[number].rows for number in group)


def _should_join(former: int, last: int) -> bool:
    """Return True if a part is at least half as large as the one before, so that each entry is rewritten seldom."""
    return former + last <= PART_ROWS and 2 * last >= former


def _taken(tables: Sequence[pa.Table], order: Int64s) -> pa.Table:
    """Return rows of the concatenated tables, in memory of their own."""
    return pa.concat_tables(tables).take(pa.array(order, pa.int64()))


def _check_embeddings(entries: Sequence[Entry], embeddings_ND: Float32s, width: int) -> None:
    expected = (len(entries), width)
    if embeddings_ND.shape != expected:
        raise ConfigError(f"the embeddings have the shape {list(embeddings_ND.shape)}; expected {list(expected)}")
    lengths = np.linalg.norm(embeddings_ND, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))  # also NaN
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{len(wrong)} embeddings are not finite or not of length one, such as that of {entries[first].path} "
            f"(length {lengths[first]:.3g}); nothing was added. Embed the images again"
        )
