"""Compaction: the rows of many small shards are moved to few packs, while readers and writers go on.

A pack is complete on the disk before the first of its shards is removed, and contains equal rows. So at every moment a
listing of the folder leads to all captions, and a process that is killed leaves at most shards whose rows are in a pack
too: the next compaction removes these.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from captioning.store.shards import Shards, UnusableShardError, is_pack, stores_under
from captioning.store.snapshot import Snapshot
from data.process.locks import try_lock
from data.schemas import SHARD

log = logging.getLogger(__name__)

MOST_PARTS: Final = 64
"""A store with more parts than these is compacted: 16,384 captions in parts of 256."""
PACK_ROWS: Final = 1 << 17
"""Rows of a pack: about 10 MB. A pack with less than half of these rows is merged again."""

_Rows = Mapping[str, NDArray[np.int32]]


def compact(store: Shards, *, most_parts: int = MOST_PARTS, pack_rows: int = PACK_ROWS) -> int:
    """Move the rows of small shards to packs if the store has more than `most_parts` parts.

    Return the number of shards removed: 0 if another process is compacting the store. A full or read-only disk is a
    warning, because all captions stay readable.
    """
    if sum(not is_pack(name) for name in store.shards()) <= most_parts:
        return 0
    try:
        held = try_lock(store.folder / "claims" / "compaction")
        if held is None:
            return 0
        with held:
            return _compact(store, pack_rows)
    except OSError as error:
        log.warning("the caption store %s was not compacted: %s", store.folder, error)
        return 0


def compact_all(root: Path) -> int:
    """Compact the stores of all captioners under the artifact root; return the number of shards removed."""
    return sum(compact(store, most_parts=1) for store in stores_under(root))


def _compact(store: Shards, pack_rows: int) -> int:
    snapshot = Snapshot(store)
    snapshot.refresh()
    while not snapshot.check_packs():  # a shard is removed only because of packs that are intact
        snapshot.refresh()
    used = snapshot.used_rows()
    small = [name for name in used if not is_pack(name) or store.rows_of(name) < pack_rows // 2]
    if sum(map(is_pack, small)) == len(small):
        return 0
    removed = 0
    for group in _groups(small, used, pack_rows):
        try:
            removed += _move(store, group, used)
        except UnusableShardError as error:
            log.warning("the caption store %s was not compacted: a shard is damaged (%s)", store.folder, error)
            return removed
    return removed


def _groups(names: Sequence[str], used: _Rows, pack_rows: int) -> Iterator[list[str]]:
    """Yield groups of shards with up to `pack_rows` rows that count."""
    group: list[str] = []
    count = 0
    for name in names:
        if group and count + len(used[name]) > pack_rows:
            yield group
            group, count = [], 0
        group.append(name)
        count += len(used[name])
    if group:
        yield group


def _move(store: Shards, group: Sequence[str], used: _Rows) -> int:
    """Write the rows of a group as a pack, and then remove its shards; return their number."""
    tables = [store.read_shard(name).take(pa.array(used[name])) for name in group if len(used[name])]
    kept = None
    if tables:
        kept = store.write_pack(pa.concat_tables([SHARD.empty_table(), *tables]).sort_by("image_sha256"))
    done = [name for name in group if kept is None or name != kept.name]
    for name in done:
        store.remove(name)
    return len(done)
