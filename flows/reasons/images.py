"""How two sets of images differ, in a few words."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.distinct import one_array
from data.errors import counted
from data.splits import SPLITS
from flows.reasons.rows import Ints, Short, Table, concatenated, halves, is_disjoint, places, short_digests

OTHER: Final = "another dataset, without a common image"
COLUMNS: Final = ("path", "sha256", "pid", "camid", "split")

_KINDS: Final = {"added": "image", "removed": "image", "replaced": "image", "relabeled": "image", "renamed": "path"}
_AT_ONCE: Final = 1 << 18


class _Images(NamedTuple):
    """The images of a table without their paths, [N] each: 33 bytes per image.

    digests: the first half of each. splits: places in `SPLITS`.
    """

    digests: Short
    pids: Ints
    camids: Ints
    splits: NDArray[np.int8]

    @classmethod
    def read(cls, table: Table) -> _Images:
        return cls(*concatenated(map(_columns, table.batches("sha256", "pid", "camid", "split"))))


def _columns(rows: pa.Table) -> tuple[Short, Ints, Ints, NDArray[np.int8]]:
    splits = pc.index_in(one_array(rows["split"]), value_set=pa.array(SPLITS)).to_numpy().astype(np.int8)
    return halves(rows["sha256"]), rows["pid"].to_numpy(), rows["camid"].to_numpy(), splits


def image_changes(old: Table, new: Table) -> list[str]:
    """Return how two sets of images differ: "2 images added", "1 path renamed" and the like.

    Images are matched by path; those with an added or removed path are matched by their bytes.
    """
    paths = _paths(old)
    place = places(paths, _paths(new))  # of each new image among the old ones
    is_gone = np.ones(len(paths), dtype=np.bool_)
    del paths
    is_gone[place[place >= 0]] = False
    gone, added = np.flatnonzero(is_gone), np.flatnonzero(place < 0)
    before, after = _Images.read(old), _Images.read(new)
    if (len(gone) or len(added)) and is_disjoint(np.sort(before.digests), after.digests):
        return [OTHER]
    kept = np.flatnonzero(place >= 0)
    counts = _differences(before, place[kept], after, kept, "")
    twin = _twins(before.digests[gone], after.digests[added])
    counts += _differences(before, gone[twin[twin >= 0]], after, added[twin >= 0], "renamed")
    counts["added"] = int((twin < 0).sum())
    counts["removed"] = len(gone) - int((twin >= 0).sum())
    if not (old.with_paths and new.with_paths):
        del counts["renamed"]
    found = ((counts[kind], noun, kind) for kind, noun in _KINDS.items())
    return [f"{counted(count, noun)} {kind}" for count, noun, kind in found if count]


def _paths(table: Table) -> Short:
    return np.concatenate([short_digests(rows["path"]) for rows in table.batches("path")])


def _differences(old: _Images, old_at: Ints, new: _Images, new_at: Ints, same: str) -> Counter[str]:
    """Count the differences of pairs of images, given by their rows. same: the name of none."""
    counts: Counter[str] = Counter()
    for start in range(0, len(old_at), _AT_ONCE):
        before, after = old_at[start : start + _AT_ONCE], new_at[start : start + _AT_ONCE]
        is_replaced = old.digests[before] != new.digests[after]
        is_relabeled = (old.pids[before] != new.pids[after]) | (old.camids[before] != new.camids[after])
        is_relabeled |= old.splits[before] != new.splits[after]
        replaced, relabeled = int(is_replaced.sum()), int((is_relabeled & ~is_replaced).sum())
        counts += Counter({"replaced": replaced, "relabeled": relabeled, same: len(before) - replaced - relabeled})
    return counts


def _twins(old: Short, new: Short) -> Ints:
    """Return for each new image the old one with the same bytes, -1 if there is none: the first for the first, ..."""
    order, known = _sorted(old)
    new_order, wanted = _sorted(new)
    first = np.flatnonzero(np.append(True, wanted[1:] != wanted[:-1])[: len(wanted)])
    sizes = np.diff(np.append(first, len(wanted)))
    number = np.arange(len(wanted)) - np.repeat(first, sizes)  # among the equal ones
    at = np.searchsorted(known, wanted) + number
    found = np.full(len(new), -1, dtype=np.int64)
    inside = np.flatnonzero(at < len(known))
    inside = inside[known[at[inside]] == wanted[inside]]
    found[new_order[inside]] = order[at[inside]]
    return found


def _sorted(digests: Short) -> tuple[Ints, Short]:
    order = np.argsort(digests, kind="stable")
    return order, digests[order]
