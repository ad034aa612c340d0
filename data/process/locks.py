"""File locks between processes, of this machine or of all machines that share a store.

A lock is `flock` on an open file: the kernel releases it when its holder ends, however it ends, so a killed process
leaves nothing to clean up. The file itself stays. Across machines the file system must carry `flock` to other hosts
(NFS 4, CephFS, Lustre mounted with `-o flock`).

This is not the filelock package, because that package needs write access to find out if a lock is held (a store on a
read-only disk can be listed), polls where the kernel can wake the waiter, and replaces `flock` where it is missing by
marker files that outlive a killed process.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def lock(path: Path) -> IO[bytes]:
    """Wait for the lock on the file `path`, which is created if needed. Close the returned file to release the lock."""
    return _acquire(path, fcntl.LOCK_EX)


def try_lock(path: Path) -> IO[bytes] | None:
    """Return the lock on the file `path` as `lock` does, or None, without waiting, if it is held.

    This also refuses a second lock on the same file within one process.
    """
    try:
        return _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def is_locked(path: Path) -> bool:
    """Return True if the lock on the existing file `path` is held. Needs no write access."""
    with path.open("rb") as stream:
        try:
            # A shared lock is enough to ask, and two processes that ask do not see each other.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _acquire(path: Path, mode: int) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("ab")
    try:
        fcntl.flock(stream, mode)
    except BaseException:  # held elsewhere, or Ctrl-C while waiting
        stream.close()
        raise
    return stream
