"""The index of a large gallery: entries in lists by their nearest center, of which a search reads the nearest ones.

The search among the read entries is exact; only entries of unread lists can be missed. How many lists must be read is
decided by the recall that this gives for entries of the gallery itself. A filtered search reads every entry that passes
and does not use the index.

Shapes: N entries, K lists, S sampled entries, Q queries, D values of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from data.files import full_disk_explained
from data.progress import ProgressFn, silent
from reid.gallery.entry import Float32s, Int64s
from reid.gallery.layout import IndexFile, Lists, write_lists
from reid.gallery.scan import nearest
from reid.gallery.snapshot import Snapshot
from reid.gallery.writer import Writer

INDEX_FROM: Final = 4_000_000
"""Number of entries from which a gallery has an index; smaller ones are searched exactly in little time."""
AIM: Final = 0.995
"""Share of the ten nearest entries that the index has to find when it is built, so that new queries reach 0.98."""
_NEAREST: Final = 10
_GROWTH: Final = 0.25
"""The index is built again when the entries that it does not cover are this share of those that it does."""
_SAMPLES_PER_LIST: Final = 64
_ROUNDS: Final = 8
_QUERIES: Final = 512
_BLOCK: Final = 16_384
_SEED: Final = 0


def ensure_index(writer: Writer, index_from: int = INDEX_FROM, progress: ProgressFn = silent) -> IndexFile | None:
    """Build the index if the gallery is large and does not have one, or has grown a lot; return it if it was built."""
    rows, current = writer.header.rows, writer.header.index
    if rows < index_from or not rows:
        if current is not None:
            writer.set_index(None)
        return None
    if current is not None and rows - current.rows <= _GROWTH * current.rows:
        return None
    with full_disk_explained(writer.folder, f"the index of {writer.folder} could not be written"):
        index = build_index(writer.snapshot, progress)
        writer.set_index(index)
    return index


def build_index(snapshot: Snapshot, progress: ProgressFn = silent) -> IndexFile:
    """Write an index of all entries, and return it with its measured recall of the ten nearest.

    progress: called with (steps, all steps, note).
    """
    rng = np.random.default_rng(_SEED)
    rows = len(snapshot)
    lists = max(1, round(rows**0.5))
    samples = np.sort(rng.choice(rows, min(rows, lists * _SAMPLES_PER_LIST), replace=False))
    centers_KD = _centers(snapshot.embeddings(samples), lists, rng, progress)
    assigned = _assigned(snapshot, centers_KD)
    progress(_ROUNDS + 1, _ROUNDS + 2, "recall")
    probes, recall = _probes(snapshot, centers_KD, assigned, rng)
    starts = np.concatenate([[0], np.cumsum(np.bincount(assigned, minlength=lists))]).astype(np.int64)
    name = write_lists(snapshot.folder, Lists(centers_KD, np.argsort(assigned, kind="stable"), starts))
    progress(_ROUNDS + 2, _ROUNDS + 2, "index")
    return IndexFile(name=name, rows=rows, lists=lists, probes=probes, recall=recall)


def candidates(snapshot: Snapshot, query_D: Float32s) -> Int64s | None:
    """Return the rows that a search by the index reads, ascending: the nearest lists, and all newer entries.

    None: all, because the gallery does not have an index.
    """
    index, lists = snapshot.header.index, snapshot.lists
    if index is None or lists is None:
        return None
    near = np.argsort(-(lists.centers_KD @ query_D), kind="stable")[: index.probes]
    found = [lists.order[lists.starts[number] : lists.starts[number + 1]] for number in near]
    return np.concatenate([np.sort(np.concatenate(found)), np.arange(index.rows, len(snapshot))])


def _centers(samples_SD: Float32s, lists: int, rng: np.random.Generator, progress: ProgressFn) -> Float32s:
    """Return the centers of k-means on the sphere, float32 [K, D] of length one."""
    centers_KD = samples_SD[rng.choice(len(samples_SD), lists, replace=False)]
    for number in range(_ROUNDS):
        progress(number, _ROUNDS + 2, "lists")
        nearest_S = np.concatenate([np.argmax(block @ centers_KD.T, axis=1) for block in _blocks(samples_SD)])
        sums_KD = np.zeros_like(centers_KD)
        np.add.at(sums_KD, nearest_S, samples_SD)
        counts = np.bincount(nearest_S, minlength=lists)
        lengths = np.linalg.norm(sums_KD, axis=1, keepdims=True)
        empty = (counts == 0) | (lengths[:, 0] == 0)
        sums_KD[empty] = samples_SD[rng.choice(len(samples_SD), int(empty.sum()))]
        centers_KD = np.divide(sums_KD, np.where(empty[:, None], 1, lengths), dtype=np.float32)
    return centers_KD


def _blocks(rows_ND: Float32s) -> Iterator[Float32s]:
    for start in range(0, len(rows_ND), _BLOCK):
        yield rows_ND[start : start + _BLOCK]


def _assigned(snapshot: Snapshot, centers_KD: Float32s) -> Int64s:
    """Return the list of each entry, [N]."""
    found = [np.argmax(part @ centers_KD.T, axis=1) for block in snapshot.blocks for part in _blocks(block)]
    return np.concatenate(found)


def _probes(snapshot: Snapshot, centers_KD: Float32s, assigned: Int64s, rng: np.random.Generator) -> tuple[int, float]:
    """Return how many lists to read, and the recall that this gives for queries that did not decide it.

    The queries are entries of the gallery, each without itself among its ten nearest.
    """
    chosen = rng.choice(len(snapshot), min(_QUERIES, len(snapshot)), replace=False)
    queries_QD = snapshot.embeddings(chosen)
    order_QK = np.argsort(-(queries_QD @ centers_KD.T), axis=1, kind="stable")
    place_QK = np.argsort(order_QK, axis=1)
    needed = list[Int64s]()  # per query: how many lists must be read to find each of its nearest
    for number, row in enumerate(chosen):
        found = nearest(snapshot.blocks, queries_QD[number], _NEAREST + 1).rows
        others = found[found != row][:_NEAREST]
        needed.append(place_QK[number][assigned[others]] + 1)
    deciding, measuring = (np.concatenate(needed[half::2] or needed) for half in (0, 1))
    probes = max(_least(deciding), _least(measuring))
    return probes, float((measuring <= probes).mean()) if len(measuring) else 1.0


def _least(needed: Int64s) -> int:
    """Return the least number of lists with which `AIM` is reached."""
    if not len(needed):
        return 1
    return int(np.sort(needed)[max(0, int(np.ceil(AIM * len(needed))) - 1)])
