"""Facts about image files: digest, size in pixels, whether it is of one color, or why a file is unusable.

Each file is read and decoded once. Later, its digest is recalled by its stamp (size, mtime, ctime) and the result of
decoding by its digest, from the SQLite file of `data.artifacts.digests`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from data.artifacts.digests import DigestMemo, Stamp, insert, path_range
from data.artifacts.fingerprint import digest_bytes
from data.errors import RejectedRow
from data.images.check import Decoding, check, checker_of
from data.images.decode import read_bytes
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn
from data.sources import remote
from data.sources.address import is_remote

_NEVER: Final = -1
"""A time that no file has."""
CHUNK: Final = 32
"""Files per task of a thread."""
REMEMBER_EVERY: Final = 4096
"""Files after which their facts are saved, so that a killed first run of a large dataset loses little work."""
_MAX_THREADS: Final = 8

_CHECKS: Final = (
    "CREATE TABLE IF NOT EXISTS checks"
    " (sha256 TEXT, checker TEXT, width INTEGER, height INTEGER, reason TEXT, flat INTEGER,"
    " PRIMARY KEY (sha256, checker))"
)
_RECALL: Final = (
    "SELECT d.size, d.mtime_ns, d.ctime_ns, d.sha256, c.width, c.height, c.reason, c.flat, d.path"
    " FROM digests d JOIN checks c ON c.sha256 = d.sha256 AND c.checker = ? WHERE d.path >= ? AND d.path < ?"
)


class ChangedError(Exception):
    """A file that changed or vanished while it was being read; the message names it."""


_UNKNOWN: Final = Decoding(0, 0, "", 0)


class Facts(NamedTuple):
    """The known facts of one file: its `Stamp`, its digest ("" if it could not be read) and its `Decoding`.

    A flat tuple in the order of `_RECALL`, because there are 200,000 of them.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    width: int
    height: int
    reason: str
    flat: int

    @property
    def stamp(self) -> Stamp:
        """Size and times that must be unchanged for these facts to hold."""
        return Stamp(self.size, self.mtime_ns, self.ctime_ns)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Result of `examine`. facts: one per path, in order. n_read, n_decoded: files read and decoded this time.

    n_unsettled: files that were read and have to be read again next time.
    """

    facts: list[Facts]
    n_read: int
    n_decoded: int
    n_unsettled: int


class _Result(NamedTuple):
    facts: Facts
    decoded: bool
    settled: bool


def examine(
    root: Path,
    paths: Sequence[str],
    *,
    memo: DigestMemo,
    max_pixels: int,
    workers: int,
    reread: bool,
    progress: ProgressFn,
    chunk: int = CHUNK,
    remember_every: int = REMEMBER_EVERY,
) -> Examination:
    """Return the facts of the files `paths` under `root`; reads and remembers the files that `memo` does not know.

    workers: threads; 0 for one per core. reread: read every file. chunk: files per task of a thread. remember_every:
    files after which their facts are saved. Raises ChangedError.
    """
    checker = checker_of(max_pixels)
    known = _recall(memo, root, checker)
    facts = [_remembered(f"{root}/{path}", known) for path in paths]
    todo = [index for index, fact in enumerate(facts) if reread or not fact.sha256]
    files = [f"{root}/{paths[index]}" for index in todo]
    decodings = {fact.sha256: Decoding(*fact[4:]) for fact in known.values()} if todo else {}
    fresh: dict[str, Facts] = {}
    n_decoded = n_unsettled = 0
    threads = workers or (remote.THREADS if is_remote(root) else min(os.cpu_count() or 1, _MAX_THREADS))
    with closing(_read_all(files, decodings, max_pixels, threads, chunk)) as results:
        for done, (index, file, result) in enumerate(zip(todo, files, results, strict=True), start=1):
            facts[index] = result.facts
            n_decoded += result.decoded
            n_unsettled += not result.settled
            # A file that may still change is read again next time; what is remembered of it only tells where it lies.
            fresh[file] = result.facts if result.settled else result.facts._replace(mtime_ns=_NEVER, ctime_ns=_NEVER)
            if done % chunk == 0 or done == len(todo):
                progress(done, len(todo), "images read")
            if len(fresh) >= remember_every or done == len(todo):
                _remember(memo, fresh, checker)
                fresh.clear()
    return Examination(facts=facts, n_read=len(todo), n_decoded=n_decoded, n_unsettled=n_unsettled)


def stamps_of(root: Path, paths: Iterable[str]) -> list[Stamp]:
    """Return the current stamps of the files `paths` under `root`; raises ChangedError if one is gone."""
    return [_stamp(f"{root}/{path}") for path in paths]


def _stamp(file: str) -> Stamp:
    if is_remote(file):
        entry = remote.entry_of(file)
        if entry is None:
            raise ChangedError(f"{file} vanished")
        return Stamp(*entry)
    try:
        return Stamp.of(os.stat(file))  # noqa: PTH116 - a Path for each of 200,000 files costs a second
    except OSError as error:
        raise ChangedError(f"{file} vanished ({error.strerror})") from error


def _remembered(file: str, known: Mapping[bytes, Facts]) -> Facts:
    stamp = _stamp(file)
    found = known.get(os.fsencode(file))
    return found if found is not None and found[:3] == stamp else _facts(stamp, "", _UNKNOWN)


def _facts(stamp: Stamp, sha256: str, decoding: Decoding) -> Facts:
    size, mtime_ns, ctime_ns = stamp
    return Facts(size, mtime_ns, ctime_ns, sha256, decoding.width, decoding.height, decoding.reason, decoding.flat)


def _recall(memo: DigestMemo, root: Path, checker: str) -> dict[bytes, Facts]:
    if not memo.path.exists():
        return {}

    def work(connection: sqlite3.Connection) -> dict[bytes, Facts]:
        connection.execute(_CHECKS)
        rows = connection.execute(_RECALL, (checker, *path_range(root)))
        return {row[-1]: Facts._make(row[:-1]) for row in rows}

    return memo.run(work)


def _remember(memo: DigestMemo, fresh: Mapping[str, Facts], checker: str) -> None:
    if not fresh:
        return

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(_CHECKS)
        rows = [(fact.sha256, checker, *fact[4:]) for fact in fresh.values() if fact.mtime_ns != _NEVER]
        connection.executemany("INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?, ?, ?)", rows)
        insert(connection, {file: (fact.stamp, fact.sha256) for file, fact in fresh.items() if fact.sha256})

    memo.run(work)


def _read_all(
    files: Sequence[str], decodings: Mapping[str, Decoding], max_pixels: int, threads: int, chunk: int
) -> Generator[_Result, None, None]:
    def read(some: Sequence[str]) -> list[_Result]:
        return [_read(file, decodings, max_pixels) for file in some]

    chunks = (files[start : start + chunk] for start in range(0, len(files), chunk))
    with closing(map_ahead(read, chunks, threads=threads, ahead=4 * threads)) as results:
        for some in results:
            yield from some


def _read(file: str, decodings: Mapping[str, Decoding], max_pixels: int) -> _Result:
    """Read one file, and decode it unless the result for the same bytes is known."""
    read_ns = time.time_ns()
    stamp = _stamp(file)
    try:
        content = read_bytes(file)
    except RejectedRow as error:
        if error.reason == "missing":
            raise ChangedError(f"{file} vanished") from error
        return _Result(_facts(stamp, "", Decoding(0, 0, error.reason, 0)), False, False)
    if len(content) != stamp.size or _stamp(file) != stamp:
        raise ChangedError(f"{file} changed")
    sha256 = digest_bytes(content)
    known = decodings.get(sha256)
    decoding = check(content, max_pixels) if known is None else known
    # A decoding that ran out of memory may succeed next time.
    settled = stamp.settled(read_ns) and decoding.reason != "out_of_memory"
    return _Result(_facts(stamp, sha256, decoding), known is None, settled)
