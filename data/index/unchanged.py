"""Recognition of an unchanged dataset by one digest of all names and stamps in its folder.

If the digest is the one that was remembered with an index artifact, any reader would find what that artifact lists, so
the index stage neither lists records nor recalls facts: it costs one `stat` call per file, and memory is constant. What
the digest does not cover (links, which may lead anywhere, folders that cannot be listed, artifacts inside the dataset)
is not remembered, and the dataset is surveyed.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple, Self

import data
from data.artifacts.digests import Stamp
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.datasets import DatasetConfig
from data.errors import RetryableError
from data.images.check import checker_of
from data.sources.address import is_remote

_TREES: Final = (
    "CREATE TABLE IF NOT EXISTS trees (key TEXT PRIMARY KEY, tree TEXT, entries INTEGER, fingerprint TEXT, root BLOB)"
)
_OTHERS: Final = 10_000
"""Files beside twice those of the dataset above which a folder is not remembered: walking it would take longer."""
_DIGEST_BYTES: Final = 32
_RECENT_NS: Final = 4_000_000_000  # longer than any tick of `Stamp.settled`


class _Tree(NamedTuple):
    """The digest of a folder's names and stamps, and how many entries it has."""

    digest: str
    entries: int


class _Known(NamedTuple):
    tree: _Tree
    fingerprint: str
    root: Path


class Recognized(NamedTuple):
    """The index artifact of an unchanged folder, and the folder that its paths are relative to."""

    ref: ArtifactRef
    root: Path


class Seen(NamedTuple):
    """The folder at one moment, and what is known of it from an earlier index."""

    tree: _Tree
    known: _Known


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The dataset of one config, whose folder can be compared with the one that an index artifact was made from.

    key: everything but the folder's content that an index depends on. base: absolute folder. outside: the manifest, if
    it is not in the folder. started_ns: the time from which on a change may have been missed.
    """

    store: ArtifactStore
    key: str
    base: Path
    outside: tuple[Path, ...]
    started_ns: int

    @classmethod
    def of(cls, store: ArtifactStore, config: DatasetConfig) -> Self | None:
        """Return the dataset of `config`, None if its folder cannot be recognized."""
        started = time.time_ns()
        if not config.root or is_remote(config.root) or is_remote(config.manifest):
            return None
        try:
            place = Path(config.root).expanduser().absolute()
            base = (place.parent if place.is_file() else place).resolve()
            if not base.is_dir() or store.root.resolve().is_relative_to(base):
                return None
            outside = tuple(_outside(config, base))
        except (OSError, RuntimeError):
            return None
        if any(path.is_dir() for path in outside):
            return None
        return cls(store=store, key=_key(config, place, base), base=base, outside=outside, started_ns=started)

    def look(self) -> Seen | None:
        """Return the folder as it is now, None if no earlier index of it is known or its digest would not cover it."""
        known = self._recall()
        tree = None if known is None else self._tree(2 * known.tree.entries + _OTHERS, None)
        return None if known is None or tree is None else Seen(tree, known)

    def find(self, seen: Seen | None = None) -> Recognized | None:
        """Return the intact index artifact of the folder as it was seen, by default now; None if it is not known."""
        seen = seen or self.look()
        if seen is None:
            return None
        ref = self.store.find("index", seen.known.fingerprint) if seen.tree == seen.known.tree else None
        return None if ref is None else Recognized(ref, seen.known.root)

    def is_still(self, seen: Seen) -> bool:
        """Return True if nothing has changed in the folder since it was seen."""
        return self._tree(seen.tree.entries, None) == seen.tree

    def remember(self, found: Recognized, files: int) -> None:
        """Remember that the folder gave `found`, unless it has changed since, or changed too recently to tell.

        files: number of files of the dataset, used or not.
        """
        tree = self._tree(2 * files + _OTHERS, self.started_ns)
        if tree is None:
            return
        row = (self.key, *tree, found.ref.fingerprint, os.fsencode(found.root))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_TREES)
            connection.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?, ?, ?)", row)

        with suppress(RetryableError):  # the store may be on a read-only disk
            self.store.memo.run(work)

    def _recall(self) -> _Known | None:
        if not self.store.memo.path.exists():
            return None

        def work(connection: sqlite3.Connection) -> list[tuple[str, int, str, bytes]]:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'trees'").fetchall():
                return []
            query = "SELECT tree, entries, fingerprint, root FROM trees WHERE key = ?"
            return connection.execute(query, (self.key,)).fetchall()

        rows = self.store.memo.run(work)
        return next(
            (_Known(_Tree(tree, count), made, Path(os.fsdecode(root))) for tree, count, made, root in rows), None
        )

    def _tree(self, most: int, settled_ns: int | None) -> _Tree | None:
        """Return the digest of the folder: the sum of those of its entries, so that none has to be kept or sorted.

        None if the digest would not cover everything, and if there are more than `most` entries. settled_ns: None too
        unless all stamps were settled at that time.
        """
        total, entries, recent = 0, 0, (settled_ns or 0) - _RECENT_NS
        try:
            for path, status in _entries(self.base, self.outside):
                stamp, mode, entries = Stamp.of(status), status.st_mode, entries + 1
                is_covered = entries <= most and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
                is_old = settled_ns is None or stamp.ctime_ns <= recent or stamp.settled(settled_ns)
                if not (is_covered and is_old):
                    return None
                line = f"{path}\0{stamp.size} {stamp.mtime_ns} {stamp.ctime_ns} {status.st_ino} {mode}"
                total += int.from_bytes(blake2b(os.fsencode(line), digest_size=_DIGEST_BYTES).digest())
        except OSError:
            return None
        return _Tree(f"{total % (1 << 8 * _DIGEST_BYTES):x}", entries)


def _entries(base: Path, outside: tuple[Path, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and the status of the base, of `outside`, and of everything in the base, in any order."""
    for place in (base, *outside):
        yield str(place), place.stat()
    waiting = [str(base)]
    while waiting:
        with os.scandir(waiting.pop()) as listed:
            for entry in listed:
                status = entry.stat(follow_symlinks=False)
                yield entry.path, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)


def _outside(config: DatasetConfig, base: Path) -> Iterator[Path]:
    """Yield the existing places outside of `base` in which the reader looks for the manifest."""
    if config.manifest:
        name = Path(config.manifest).expanduser()
        for path in (base / name, name.absolute()):
            if path.exists() and not path.resolve().is_relative_to(base):
                yield path.resolve()


def _key(config: DatasetConfig, place: Path, base: Path) -> str:
    """Return the digest of all but the folder's content that an index depends on: config, code and user."""
    manifest = str(Path(config.manifest).expanduser().absolute()) if config.manifest else ""
    settings = config.model_dump(mode="json", exclude={"root", "manifest", "workers"})
    user = [os.geteuid(), os.getegid()]
    places = [os.fsencode(name).hex() for name in (place, base, manifest)]
    return digest([settings, places, checker_of(config.max_pixels), code_digest(), user])


@cache
def code_digest() -> str:
    """Return the digest of the sources of this package: another version may read a dataset differently."""
    files = sorted(Path(data.__path__[0]).rglob("*.py"))
    return digest([[file.name, *Stamp.of(file.stat())] for file in files])
