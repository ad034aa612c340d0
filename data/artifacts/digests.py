"""A cache of file digests, so that unchanged files are not read again.

One SQLite file stores, per absolute path, the digest of the file and its size, mtime and ctime at that time. ctime is
compared because tools can set mtime (``touch -r``, ``cp -p``) but not ctime. Deleting the cache costs one read of every
file; a damaged cache is deleted.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from data.artifacts.fingerprint import digest_file
from data.artifacts.root import make_root
from data.errors import RetryableError
from data.sources.stamps import numbers_of

# A file that changed this recently may change again within one tick of its file system's clock.
_TICK_NS: Final = 100_000_000
_COARSE_TICK_NS: Final = 2_000_000_000  # for times in whole seconds (FAT, some network disks)
_SECOND_NS: Final = 1_000_000_000
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DIGESTS: Final = (
    "CREATE TABLE IF NOT EXISTS digests"
    " (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT)"
)

T = TypeVar("T")


class Stamp(NamedTuple):
    """Size in bytes and two times in nanoseconds; a remembered digest is valid while all three are unchanged."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """Return the stamp in a stat result."""
        return cls(*numbers_of(stat))

    def settled(self, read_ns: int) -> bool:
        """Return True if any change after `read_ns` (time.time_ns) is certain to change this stamp."""
        tick = _COARSE_TICK_NS if self.ctime_ns % _SECOND_NS == 0 else _TICK_NS
        return self.ctime_ns + tick < read_ns


def path_range(root: Path) -> tuple[bytes, bytes]:
    """Return the bounds, low <= key < high, of the keys of all files under `root`."""
    prefix = os.fsencode(str(root).rstrip(os.sep))
    return prefix + b"/", prefix + b"0"  # "0" follows "/"


def insert(connection: sqlite3.Connection, entries: Mapping[str, tuple[Stamp, str]]) -> None:
    """Remember digests as `DigestMemo.remember` does, within a transaction of `DigestMemo.run`."""
    rows = [(os.fsencode(path), *stamp, sha256) for path, (stamp, sha256) in entries.items()]
    connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging, in which readers do not wait for writers.

    SQLite does not wait for this switch while another process holds the file. The file stays as it is then, which is
    slower, and a later connection switches it.
    """
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise


MEMO_FILE: Final = "digests.sqlite"
"""Name of the memo's file in the root of an artifact store; every store has one."""


class DigestMemo:
    """Digests remembered in the SQLite file at `path`, created on first use; many processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with an open connection in one transaction and return its result; replace a damaged file.

        Raises RetryableError when the file cannot be used for another reason: disk full, no permission, locked.
        """
        try:
            return self._run(work)
        except sqlite3.OperationalError as error:
            raise RetryableError(
                f"{self.path}, which remembers digests of files, cannot be used: {error}. Make sure that its folder"
                " is writable and its disk has space; the file itself may be deleted"
            ) from error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in _DAMAGED:
                raise
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            return self._run(work)

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        make_root(self.path.parent)
        with closing(sqlite3.connect(self.path, timeout=60)) as connection:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")  # a power cut loses at most the last entries
            connection.execute(_DIGESTS)
            with connection:
                return work(connection)

    def recall(self, root: Path) -> dict[str, tuple[Stamp, str]]:
        """Return what is remembered of every file under `root`: absolute path -> (stamp, sha256)."""
        if not self.path.exists():
            return {}
        query = "SELECT path, size, mtime_ns, ctime_ns, sha256 FROM digests WHERE path >= ? AND path < ?"
        rows = self.run(lambda connection: connection.execute(query, path_range(root)).fetchall())
        return {os.fsdecode(row[0]): (Stamp(*row[1:4]), row[4]) for row in rows}

    def files_with(self, digests: Collection[str]) -> list[tuple[Path, str]]:
        """Return (absolute path, sha256) of the files remembered with one of `digests`; they may be gone or changed."""
        if not self.path.exists():
            return []
        places = ", ".join("?" * len(digests))
        query = f"SELECT path, sha256 FROM digests WHERE sha256 IN ({places}) ORDER BY path"
        rows = self.run(lambda connection: connection.execute(query, tuple(digests)).fetchall())
        return [(Path(os.fsdecode(path)), sha256) for path, sha256 in rows]

    def remember(self, entries: Mapping[str, tuple[Stamp, str]]) -> None:
        """Remember digests: absolute path -> (stamp, sha256).

        Pass only files whose stamp was `settled` when they were read: others could change and keep their stamp.
        """
        if entries:
            self.run(lambda connection: insert(connection, entries))

    def digest_folder(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Return relative name -> sha256 for the files `names` in `folder`, reading only changed files."""
        base = folder.resolve()
        known = self.recall(base)
        fresh: dict[str, tuple[Stamp, str]] = {}
        digests: dict[str, str] = {}
        for name in sorted(names):
            path = base / name
            read_ns = time.time_ns()
            stamp = Stamp.of(path.stat())
            remembered = known.get(str(path))
            if remembered is not None and remembered[0] == stamp:
                digests[name] = remembered[1]
                continue
            digests[name] = digest_file(path)
            if stamp.settled(read_ns):
                fresh[str(path)] = (stamp, digests[name])
        self.remember(fresh)
        return digests
