"""Which identities are in which batch of an epoch.

Each batch has P different identities, drawn one after the other with probabilities in proportion to their groups that
are left. Identities with as many groups left as there are batches left come first, because they should be in all of
them; by induction over the batches, the groups that are left then always suffice to fill every batch. An epoch leaves
out fewer than P groups, so near its end there can be more than P such identities.

Both functions draw from this distribution, but not the same batches. `scheduled_by_keys` needs a random number per
identity and batch, so its time grows with the square of the dataset; `scheduled_by_groups` needs about one per group.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# Larger than any Gumbel key (below 50), and small enough that float64 keeps their order.
_FIRST: Final = 1e6


def scheduled_by_keys(groups: Indices, identities: int, batches: int, rng: np.random.Generator) -> Indices:
    """Return the identities of each batch, [batches, P].

    groups: of each identity, [N], at most `batches`. identities: P. batches: as many as the groups suffice for.
    """
    left = groups.astype(np.float64)
    schedule = np.empty((batches, identities), dtype=np.int64)
    for index in range(batches):
        with np.errstate(divide="ignore"):
            # Gumbel keys: the P largest are a weighted draw without replacement.
            keys = np.log(left) + rng.gumbel(size=len(left))
        keys[left >= batches - index] += _FIRST
        chosen = np.argpartition(-keys, identities - 1)[:identities]
        schedule[index] = rng.permutation(np.sort(chosen))
        left[chosen] -= 1
    return schedule


def scheduled_by_groups(groups: Indices, identities: int, batches: int, rng: np.random.Generator) -> Indices:
    """Return the identities of each batch, [batches, P]; see `scheduled_by_keys`.

    A group is drawn from all that are left, and drawn again if its identity is already in the batch.
    """
    schedule = np.empty((batches, identities), dtype=np.int64)
    pool = _Pool(groups)
    for index in range(batches):
        chosen = pool.take_first(batches - index, identities, rng)
        while len(chosen) < identities:
            pool.draw(chosen, rng)
        schedule[index] = rng.permutation(list(chosen))
    return schedule


class _Pool:
    """The groups that are left. Identities that come first are kept apart; the others have an entry per group."""

    def __init__(self, groups: Indices) -> None:
        self._left: list[int] = groups.tolist()
        self._entries: list[int] = np.repeat(np.arange(len(groups)), groups).tolist()
        self._first: dict[int, None] = {}  # a set in the order of insertion
        self._unused = 0  # entries of the identities that come first
        self._with_left: defaultdict[int, list[int]] = defaultdict(list)
        for identity, left in enumerate(self._left):
            self._with_left[left].append(identity)

    def take_first(self, batches: int, identities: int, rng: np.random.Generator) -> dict[int, None]:
        """Take a group of up to P identities that come first, with `batches` batches left; return these."""
        for identity in self._with_left.pop(batches, ()):
            if self._left[identity] == batches:
                self._first[identity] = None
                self._unused += batches
        if 2 * self._unused > len(self._entries):
            self._entries = [identity for identity in self._entries if identity not in self._first]
            self._unused = 0
        chosen = list(self._first)
        if len(chosen) > identities:
            left = np.array([self._left[identity] for identity in chosen])
            chosen = rng.choice(chosen, identities, replace=False, p=left / left.sum()).tolist()
        for identity in chosen:
            self._left[identity] -= 1
        return dict.fromkeys(chosen)

    def draw(self, chosen: dict[int, None], rng: np.random.Generator) -> None:
        """Draw a group, and take it unless its identity is in `chosen`."""
        at = int(rng.integers(len(self._entries)))
        identity = self._entries[at]
        if identity in chosen:
            return
        chosen[identity] = None
        self._entries[at] = self._entries[-1]
        self._entries.pop()
        self._left[identity] -= 1
        self._with_left[self._left[identity]].append(identity)
