"""Division of labor between workers: the images of one captioner in 256 buckets, claimed one by one.

The first byte of an image's digest is its bucket, on every machine. The worker that locks a bucket's file captions its
images. The kernel releases the lock when the process ends for any reason, so a killed worker leaves nothing to clean
up, and others take over its buckets. Locks are `flock`: across machines they need a file system with distributed locks
(NFS 4, CephFS, Lustre with -o flock). Without them two machines may caption the same image, which costs time but loses
nothing; assign each machine its own part there (`buckets_of_part`).
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
    """Return the buckets of part number `part`, counted from 0, of `of` parts.

    Parts have equal size if `of` divides 256. Raises ConfigError unless 0 <= part < of <= 256.
    """
    if not 0 <= part < of <= BUCKETS:
        raise ConfigError(
            f"part={part} of={of}: part must be at least 0 and less than of, and of at most {BUCKETS}; for example "
            "part=0 of=4"
        )
    return range(part, BUCKETS, of)


class Claims:
    """The buckets that this worker has claimed. Two workers exclude each other, even within one process."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "claims"
        self._held: dict[int, IO[bytes]] = {}

    def take(self, bucket: int) -> bool:
        """Claim a bucket; return False if another worker holds it."""
        with full_disk_explained(self._folder, "no work could be claimed"):
            held = try_lock(self._folder / f"{bucket:02x}")
        if held is None:
            return False
        self._held[bucket] = held
        return True

    def release(self, bucket: int) -> None:
        """Release a claimed bucket."""
        self._held.pop(bucket).close()

    def release_all(self) -> None:
        """Release all claimed buckets."""
        for bucket in list(self._held):
            self.release(bucket)
