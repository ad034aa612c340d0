"""Who captions what: the images of one captioner in 256 buckets, which processes claim one by one.

An image lies in the bucket of its digest's first byte, on every machine alike. Who holds the lock of a bucket's file
captions its images; the kernel releases the lock when the process ends, however it ends, so that a killed one leaves
nothing to clear up and others take its buckets over. Locks are `flock`: across machines they need a file system whose
locks reach across hosts (NFS 4, CephFS, Lustre with -o flock). Where they do not, two machines may caption the same
image, which wastes one caption and loses none; there, give each machine its own part.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Final

from data.errors import ConfigError
from data.files import full_disk_explained
from data.process.locks import try_lock

BUCKETS: Final = 256


def bucket_of(image_sha256: str) -> int:
    """Return the bucket (0 to 255) of an image."""
    return int(image_sha256[:2], 16)


def buckets_of_part(part: int, of: int) -> range:
    """Return the buckets of one of `of` parts, `part` counted from 0. Raises ConfigError unless 0 <= part < of <= 256.

    Parts are equally large where `of` divides 256.
    """
    if not 0 <= part < of <= BUCKETS:
        raise ConfigError(f"there is no part {part} of {of}: parts count from 0, and there are at most {BUCKETS}")
    return range(part, BUCKETS, of)


class Claims:
    """The buckets that this holder has claimed; two holders exclude each other, also within one process."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "claims"
        self._held: dict[int, IO[bytes]] = {}

    def take(self, bucket: int) -> bool:
        """Claim a bucket; False if somebody else has it."""
        with full_disk_explained(self._folder, "no work could be claimed"):
            held = try_lock(self._folder / f"{bucket:02x}")
        if held is None:
            return False
        self._held[bucket] = held
        return True

    def release(self, bucket: int) -> None:
        """Give a claimed bucket back."""
        self._held.pop(bucket).close()

    def release_all(self) -> None:
        """Give everything back."""
        for bucket in list(self._held):
            self.release(bucket)
