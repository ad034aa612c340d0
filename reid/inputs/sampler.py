"""P x K identity batches: P different identities per batch and K images of each.

The batches of an epoch are a pure function of (labels, P, K, seed, epoch), without a global random generator or state
between epochs, so a run can resume at any batch of any epoch. In a distributed run, every process draws the same global
batches and takes its own slice of each.

An epoch
    An identity with n >= K images gives floor(n / K) groups of K different images; the n mod K unused images differ
    between epochs. An identity with n < K images gives one group: each image at least once, filled up by draws with
    replacement. A batch has P groups of P different identities. With g_i groups for identity i, an epoch has the
    largest number of batches B with ``sum_i min(g_i, B) >= P * B``: usually all groups but the last (sum g_i) mod P.
    The length of an epoch therefore depends on the dataset only. The sampler commonly used in re-identification stops
    when fewer than P identities are left, so its epochs differ in length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from data.errors import ConfigError, raise_problems
from reid.inputs.schedule import Indices, scheduled_by_groups, scheduled_by_keys

MOST_KEYS: Final = 100_000_000
"""Identities times batches up to which an epoch is drawn by keys, in ten seconds; with more, by groups."""


class IdentitySampler:
    """Sampler of P x K batches of image positions; the module docstring defines an epoch.

    Args:
        pids: identity of each training image, [N]; batches are positions in this list.
        identities: P, different identities in a global batch.
        images: K, images of each identity.
        seed: any non-negative integer.
        rank, world: this process and the number of processes; `world` must divide `identities`.

    Raises:
        ConfigError: there are fewer than P identities, or a setting is out of range.
    """

    def __init__(
        self, pids: ArrayLike, *, identities: int, images: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        labels = np.asarray(pids, dtype=np.int64)
        self.identities, self.images, self.seed = identities, images, seed
        self.rank, self.world = rank, world
        self._check(labels)
        # The images of identity i are self._order[self._ends[i] : self._ends[i + 1]].
        self._order = np.argsort(labels, kind="stable")
        self._ends = np.concatenate([[0], np.flatnonzero(np.diff(labels[self._order])) + 1, [len(labels)]])
        groups = np.maximum(1, np.diff(self._ends) // images)
        self.batches_per_epoch = _epoch_length(groups, identities)
        self._groups = np.minimum(groups, self.batches_per_epoch)

    @property
    def batch_size(self) -> int:
        """Images in a global batch: P * K."""
        return self.identities * self.images

    def __len__(self) -> int:
        """Return the number of batches in every epoch."""
        return self.batches_per_epoch

    def epoch(self, epoch: int) -> Indices:
        """Return all global batches of an epoch, [batches_per_epoch, P * K], the images of an identity side by side."""
        rng = np.random.default_rng([self.seed, epoch])
        groups = self._draw_groups(rng)
        schedule = self._schedule(rng)
        following = np.cumsum(self._groups) - self._groups  # the next group of each identity
        batches = np.empty((len(schedule), self.identities, self.images), dtype=np.int64)
        for batch, chosen in zip(batches, schedule, strict=True):
            batch[:] = groups[following[chosen]]
            following[chosen] += 1
        return batches.reshape(len(schedule), self.batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Indices]:
        """Yield this process's part, [P * K / world], of each batch of an epoch, from batch `start` on."""
        share = self.batch_size // self.world
        for batch in self.epoch(epoch)[start:]:
            yield batch[self.rank * share : (self.rank + 1) * share]

    def _check(self, labels: Indices) -> None:
        found = len(np.unique(labels))
        problems = []
        if labels.ndim != 1:
            problems.append(f"pids has shape {labels.shape}; give one identity per image, [N]")
        if self.identities < 1 or self.images < 1:
            problems.append(f"P x K is {self.identities} x {self.images}; both must be at least 1")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}; it must not be negative")
        if found < self.identities:
            problems.append(
                f"a batch needs {self.identities} different identities but the training split has {found}; "
                f"set train.batch.identities={max(found, 2)} or lower, or add training identities"
            )
        if self.world < 1 or not 0 <= self.rank < self.world or self.identities % self.world:
            problems.append(
                f"rank {self.rank} of {self.world} processes: their number must divide the {self.identities} identities"
            )
        raise_problems("batch sampler", problems, ConfigError)

    def _draw_groups(self, rng: np.random.Generator) -> Indices:
        """Draw the groups of every identity, those of one identity side by side, [groups, K]."""
        drawn = np.empty((int(self._groups.sum()), self.images), dtype=np.int64)
        flat, at = drawn.reshape(-1), 0
        for start, end, count in zip(self._ends[:-1], self._ends[1:], self._groups * self.images, strict=True):
            members = self._order[start:end]
            images = rng.permutation(members)
            if len(images) < self.images:
                images = np.concatenate([images, rng.choice(members, self.images - len(images))])
            flat[at : at + count] = images[:count]
            at += count
        return drawn

    def _schedule(self, rng: np.random.Generator) -> Indices:
        """Draw the identities of each batch, [batches, P]."""
        keys = len(self._groups) * self.batches_per_epoch
        scheduled = scheduled_by_keys if keys <= MOST_KEYS else scheduled_by_groups
        return scheduled(self._groups, self.identities, self.batches_per_epoch, rng)


def _epoch_length(groups: Indices, identities: int) -> int:
    """Return the largest number of batches B with ``sum_i min(g_i, B) >= P * B``."""

    def is_too_long(length: int) -> bool:  # the sum is concave in B, so all lengths up to the largest one will do
        return bool(np.minimum(groups, length).sum() < identities * length)

    return bisect_left(range(1, int(groups.sum()) // identities + 1), True, key=is_too_long)
