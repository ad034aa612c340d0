"""A memory of file digests, so that an unchanged file is not read again.

One SQLite file holds, for each absolute path, the size, mtime and ctime under which its digest was taken. ctime is
in the key because tools can set mtime at will (``touch -r``, ``cp -p``) but not ctime. It is a cache: deleting it
costs one re-read.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data.fingerprint import digest_file

# A file written this recently may be written again within one tick of the clock: not remembered yet.
_RACY_NS = 100_000_000


class Stamp(NamedTuple):
    """What must be unchanged for a remembered digest to hold: bytes, and two times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """Take the stamp out of a stat result."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class DigestMemo:
    """Digests remembered in the SQLite file at `path` (created on first use; safe with many processes)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=60)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS digests"
            " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT)"
        )
        return connection

    def recall(self, root: Path) -> dict[str, tuple[Stamp, str]]:
        """Return what is remembered of every file under `root`: absolute path -> (stamp, sha256)."""
        if not self.path.exists():
            return {}
        prefix = f"{root}{os.sep}"
        connection = self._connect()
        try:
            rows = connection.execute(
                "SELECT path, size, mtime_ns, ctime_ns, sha256 FROM digests WHERE path >= ? AND path < ?",
                (prefix, prefix[:-1] + chr(ord(os.sep) + 1)),
            )
            return {row[0]: (Stamp(*row[1:4]), row[4]) for row in rows}
        finally:
            connection.close()

    def remember(self, entries: Mapping[str, tuple[Stamp, str]]) -> None:
        """Remember digests taken just now, except of files so fresh that they may still be changing."""
        newest = time.time_ns() - _RACY_NS
        rows = [
            (path, *stamp, sha256)
            for path, (stamp, sha256) in entries.items()
            if max(stamp.mtime_ns, stamp.ctime_ns) < newest
        ]
        if not rows:
            return
        connection = self._connect()
        try:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)
        finally:
            connection.close()

    def digest_folder(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """Return relative name -> sha256 for the files `names` of `folder`, reading only what changed."""
        known = self.recall(folder.resolve())
        fresh: dict[str, tuple[Stamp, str]] = {}
        digests: dict[str, str] = {}
        for name in sorted(names):
            path = folder.resolve() / name
            stamp = Stamp.of(path.stat())
            remembered = known.get(str(path))
            if remembered is not None and remembered[0] == stamp:
                digests[name] = remembered[1]
                continue
            digests[name] = digest_file(path)
            fresh[str(path)] = (stamp, digests[name])
        self.remember(fresh)
        return digests
