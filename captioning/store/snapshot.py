"""The content of a caption store at one moment: where the caption of each image is, without its text in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.store.shards import Content, Shards, UnusableShardError, is_pack
from data.columns.digests import WIDTH, Digests, positions
from data.process.read_ahead import map_ahead
from data.schemas import SHARD

log = logging.getLogger(__name__)

_READERS: Final = 8  # threads that read parts
_PACKS: Final = 1  # packs that are read ahead of the one in use
_ROWS: Final = 1 << 16  # rows of parts that are yielded at once
_AT_ONCE: Final = 1 << 18  # images that are looked up at once


class ShardGoneError(Exception):
    """A shard that was found is no longer there: its rows are in a pack now, or it was damaged. Refresh and repeat."""


class _Images(NamedTuple):
    """The images of shards: sorted digests, each with the number of its shard and its row there; 40 bytes per image."""

    digests: Digests
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]

    @classmethod
    def empty(cls) -> _Images:
        return cls(np.empty(0, dtype=f"S{WIDTH}"), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))

    def at(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> _Images:
        return _Images(self.digests[index], self.shards[index], self.rows[index])


class Snapshot:
    """The content of a store as of the last `refresh`, which reads only new shards.

    keep_rows: about as many rows of parts stay in memory, so that a small store is read once.
    """

    def __init__(self, store: Shards, *, keep_rows: int = _ROWS) -> None:
        self._store = store
        self._keep_rows = keep_rows
        self._forget()

    def _forget(self) -> None:
        self._names: list[str] = []
        self._images = _Images.empty()
        self._parts: dict[str, pa.Table] = {}
        self._kept_rows = 0

    def __len__(self) -> int:
        """Return the number of images that have a caption."""
        return len(self._images.digests)

    def refresh(self) -> None:
        """Find the images of new shards, and set damaged shards aside.

        A shard that vanishes between listing and reading has been packed: the new listing has its pack.
        """
        vanished: set[str] = set()
        while True:
            names = [name for name in self._store.shards() if name not in vanished]
            if not set(self._names) <= set(names):
                self._forget()
            known = set(self._names)
            gone = self._add([name for name in names if name not in known])
            if not gone:
                return
            vanished |= gone

    def _add(self, names: Sequence[str]) -> set[str]:
        """Add the images of shards, and return the names of those that have vanished."""
        found: list[_Images] = []
        gone = set()
        for name, content in zip(names, self._read(names), strict=True):
            if isinstance(content, FileNotFoundError):
                gone.add(name)
            elif content is not None:
                numbers = np.full(len(content.digests), len(self._names), dtype=np.int32)
                found.append(_Images(content.digests, numbers, np.arange(len(numbers), dtype=np.int32)))
                self._names.append(name)
                self._keep(name, content)
        if found:
            digests, shards, rows = map(np.concatenate, zip(*found, strict=True))
            found.clear()  # of every image, once more
            self._merge(_Images(digests, shards, rows))
        return gone

    def _keep(self, name: str, content: Content) -> None:
        if content.rows is not None and self._kept_rows < self._keep_rows:
            self._parts[name] = content.rows
            self._kept_rows += len(content.rows)

    def _read(self, names: Sequence[str]) -> Iterator[Content | FileNotFoundError | None]:
        return map_ahead(self._content_or_set_aside, names, threads=_READERS, ahead=2 * _READERS)

    def _content_or_set_aside(self, name: str) -> Content | FileNotFoundError | None:
        try:
            return self._store.content_of(name)
        except UnusableShardError as error:
            self._store.set_aside(name, str(error))
        except FileNotFoundError as error:
            log.info("another process has already moved %s", name)
            return error
        return None

    def _merge(self, found: _Images) -> None:
        """Add rows of new shards, which are in the order of their names. The shard whose name sorts first counts."""
        found = found.at(np.argsort(found.digests, kind="stable"))
        is_first = np.append(True, found.digests[1:] != found.digests[:-1])
        found = found if is_first.all() else found.at(is_first)
        old = self._images
        if not len(old.digests):
            self._images = found
            return
        at = positions(old.digests, found.digests)
        again = np.flatnonzero(at >= 0)
        names = np.array(self._names)
        better = again[names[found.shards[again]] < names[old.shards[at[again]]]]
        old.shards[at[better]], old.rows[at[better]] = found.shards[better], found.rows[better]
        new = found.at(at < 0)
        where = np.searchsorted(old.digests, new.digests)
        self._images = _Images(*(np.insert(column, where, more) for column, more in zip(old, new, strict=True)))

    def has(self, images: Digests) -> NDArray[np.bool_]:
        """Return the mask [N] of those of `images`, [N], that have a caption."""
        return self._find(images) >= 0

    def _find(self, images: Digests) -> NDArray[np.int64]:
        """Return the index of each image in `_images`, -1 if it is absent."""
        found = np.empty(len(images), dtype=np.int64)
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            order = np.argsort(part, kind="stable")  # looking up sorted digests is many times faster
            found[start + order] = positions(self._images.digests, part[order])
        return found

    def check_packs(self) -> bool:
        """Read all packs in full and set damaged ones aside; return False if the snapshot has to be refreshed."""
        intact = True
        for name in filter(is_pack, self._names):
            try:
                self._store.check(name)
            except UnusableShardError as error:
                self._store.set_aside(name, str(error))
                intact = False
            except FileNotFoundError:
                intact = False
        return intact

    def used_rows(self) -> dict[str, NDArray[np.int32]]:
        """Return shard name -> its rows that count, in the order of their images."""
        order = np.argsort(self._images.shards, kind="stable")
        ends = np.searchsorted(self._images.shards[order], np.arange(len(self._names) + 1))
        rows = self._images.rows[order]
        return {name: rows[ends[i] : ends[i + 1]] for i, name in enumerate(self._names)}

    def read(self, images: Digests) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield the captions of `images`, [N], in the order of the store: their indices in `images`, and their rows.

        Images without a caption are left out; one that is asked for twice is yielded twice. Raises ShardGoneError.
        """
        asked, rows, ends = self._in_store_order(images)
        wanted = [i for i in range(len(self._names)) if ends[i] < ends[i + 1]]
        for packs in (True, False):
            numbers = [i for i in wanted if is_pack(self._names[i]) == packs]
            yield from self._read_rows(numbers, asked, rows, ends)

    def _in_store_order(self, images: Digests) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.intp]]:
        """Return the indices of the captioned ones of `images` in the order of the store, and the row of each in its
        shard; and where those of each shard begin, and the last ones end.
        """
        found = self._find(images)
        asked = np.flatnonzero(found >= 0)
        shards, rows = self._images.shards[found[asked]], self._images.rows[found[asked]]
        order = np.lexsort((rows, shards))
        return asked[order], rows[order], np.searchsorted(shards[order], np.arange(len(self._names) + 1))

    def _read_rows(
        self, numbers: Sequence[int], asked: NDArray[np.int64], rows: NDArray[np.int32], ends: NDArray[np.intp]
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield the rows of the shards `numbers`, of which all are packs or all are parts."""
        threads = _PACKS if numbers and is_pack(self._names[numbers[0]]) else _READERS
        tables = map_ahead(self._table_of, (self._names[i] for i in numbers), threads=threads, ahead=threads)
        waiting: list[pa.Table] = []
        indices: list[NDArray[np.int64]] = []
        with closing(tables):
            for i, table in zip(numbers, tables, strict=True):
                for start in range(ends[i], ends[i + 1], _ROWS):
                    part = slice(start, min(start + _ROWS, ends[i + 1]))
                    waiting.append(table.take(pa.array(rows[part])))
                    indices.append(asked[part])
                    if sum(map(len, indices)) >= _ROWS:
                        yield np.concatenate(indices), pa.concat_tables(waiting)
                        waiting, indices = [], []
        if waiting:
            yield np.concatenate(indices), pa.concat_tables(waiting)

    def _table_of(self, name: str) -> pa.Table:
        if name in self._parts:
            return self._parts[name]
        try:
            return self._store.read_shard(name)
        except UnusableShardError as error:
            self._store.set_aside(name, str(error))
            raise ShardGoneError(name) from error
        except FileNotFoundError as error:
            raise ShardGoneError(name) from error

    def table(self) -> pa.Table:
        """Return one row per captioned image, sorted by image_sha256: the whole store in memory.

        If two processes captioned an image at once, the row of the shard whose name sorts first is used.
        """
        found = list(self.read(self._images.digests))
        table = pa.concat_tables([SHARD.empty_table(), *(rows for _, rows in found)])
        return table.take(pa.array(np.argsort(np.concatenate([np.empty(0, np.int64), *(at for at, _ in found)]))))
