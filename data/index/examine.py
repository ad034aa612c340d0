"""Facts about image files: digest, size in pixels, whether it is of one color, or why a file is unusable.

Each file is read and decoded once. Later, its digest is recalled by its stamp (size, mtime, ctime) and the result of
decoding by its digest, from the SQLite file of `data.artifacts.digests`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from data.artifacts.digests import DigestMemo, Stamp, insert, path_range
from data.artifacts.fingerprint import digest_bytes
from data.columns.records import BATCH_ROWS, order_of
from data.errors import RejectedRow
from data.images.check import Decoding, check, checker_of
from data.images.decode import read_bytes
from data.index.facts import Decodings, Facts, FileFacts, Rows
from data.index.shard_facts import set_facts
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn, silent
from data.readers.webdataset.tables import ShardReading
from data.sources import remote
from data.sources.address import is_remote, shown
from data.sources.shards import Place, place_of, size_of, stamp_of

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


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Result of `examine`. facts: one per path, in order. n_read, n_decoded: files read and decoded this time.

    n_unsettled: files that were read and have to be read again next time.
    """

    facts: FileFacts
    n_read: int
    n_decoded: int
    n_unsettled: int


class _Result(NamedTuple):
    facts: Facts
    decoded: bool
    settled: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read.

    max_pixels: images with more are not decoded. workers: threads; 0 for one per core. reread: read every file. shards:
    the tar shards, which have been read. chunk: files per task of a thread. remember_every: files after which their
    facts are saved.
    """

    max_pixels: int
    workers: int = 0
    reread: bool = False
    progress: ProgressFn = silent
    shards: ShardReading = field(default_factory=ShardReading)
    chunk: int = CHUNK
    remember_every: int = REMEMBER_EVERY

    def threads(self, root: Path) -> int:
        """Return the number of threads that read files under `root`."""
        return self.workers or (remote.THREADS if is_remote(root) else min(os.cpu_count() or 1, _MAX_THREADS))


def examine(root: Path, paths: pa.Array, memo: DigestMemo, how: Reading) -> Examination:
    """Return the facts of the files `paths` under `root`; reads and remembers the files that `memo` does not know.

    paths: large_string. Raises ChangedError.
    """
    checker, shards = checker_of(how.max_pixels), how.shards
    facts = FileFacts.empty(len(paths))
    in_shards = set_facts(facts, root, paths, shards.tables())
    alone = np.flatnonzero(~in_shards)
    files = paths.filter(pa.array(~in_shards)) if in_shards.any() else paths
    for row, stamp in zip(map(int, alone), stamps_of(root, files), strict=True):
        facts.set_stamp(row, stamp)
    others = _recall(memo, root, paths, facts, checker) if len(alone) else FileFacts.empty(0)
    todo = np.flatnonzero(~in_shards if how.reread else ~facts.rows["is_read"])
    decodings = Decodings(facts, others) if len(todo) else Decodings()
    fresh: dict[str, Facts] = {}
    n_decoded = n_unsettled = 0
    chunks = _chunks(root, paths, todo, how.chunk)
    with closing(_read_all(chunks, decodings, how.max_pixels, how.threads(root))) as results:
        for done, (row, (file, result)) in enumerate(zip(map(int, todo), results, strict=True), start=1):
            facts.set(row, result.facts)
            n_decoded += result.decoded
            n_unsettled += not result.settled
            # A file that may still change is read again next time; what is remembered of it only tells where it lies.
            fresh[file] = result.facts if result.settled else result.facts._replace(mtime_ns=_NEVER, ctime_ns=_NEVER)
            if done % how.chunk == 0 or done == len(todo):
                how.progress(done, len(todo), "images read")
            if len(fresh) >= how.remember_every or done == len(todo):
                _remember(memo, fresh, checker)
                fresh.clear()
    return Examination(
        facts=facts,
        n_read=len(todo) + shards.n_read,
        n_decoded=n_decoded + shards.n_decoded,
        n_unsettled=n_unsettled + shards.n_unsettled,
    )


def stamps_of(root: Path, paths: pa.Array) -> Iterator[Stamp]:
    """Yield the current stamps of the files `paths` under `root`; raises ChangedError if one is gone."""
    for start in range(0, len(paths), BATCH_ROWS):
        for path in paths.slice(start, BATCH_ROWS).to_pylist():
            yield _stamp(f"{root}/{path}")


def _stamp(file: str) -> Stamp:
    if (place := place_of(file)) is not None:
        return _stamp_of_member(file, place)
    if is_remote(file):
        entry = remote.entry_of(file)
        if entry is None:
            raise ChangedError(f"{shown(file)} vanished")
        return Stamp(*entry)
    try:
        return Stamp.of(os.stat(file))  # noqa: PTH116 - a Path for each of 200,000 files costs a second
    except OSError as error:
        raise ChangedError(f"{shown(file)} vanished ({error.strerror})") from error


def _stamp_of_member(file: str, place: Place) -> Stamp:
    """Return the stamp of a member of a tar shard: its own size and the times of the shard."""
    try:
        size, stamp = size_of(place), stamp_of(place.shard)
    except RejectedRow as error:
        raise ChangedError(f"{shown(place.shard)} changed") from error
    if size is None or stamp is None:
        raise ChangedError(f"{shown(file)} vanished")
    return Stamp(size, *stamp[1:])


def _facts(stamp: Stamp, sha256: str, decoding: Decoding) -> Facts:
    size, mtime_ns, ctime_ns = stamp
    return Facts(size, mtime_ns, ctime_ns, sha256, decoding.width, decoding.height, decoding.reason, decoding.flat)


def _recall(memo: DigestMemo, root: Path, paths: pa.Array, facts: FileFacts, checker: str) -> FileFacts:
    """Complete `facts`, which have stamps, by what `memo` knows of files with these stamps.

    Returns what it knows of other files under `root`, or of files with another stamp.
    """
    others: list[FileFacts] = []
    twins: list[tuple[int, int]] = []

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(_CHECKS)
        others.clear()
        twins.clear()
        low, end = path_range(root)
        for places in _sorted_places(root, paths, twins):
            high = max(places) + b"\0"  # the key after the last one
            others.extend(_unmatched(facts, places, connection.execute(_RECALL, (checker, low, high))))
            low = high
        others.extend(_unmatched(facts, {}, connection.execute(_RECALL, (checker, low, end))))

    if memo.path.exists():
        memo.run(work)
    for row, first in twins:
        facts.rows[row] = facts.rows[first]
    return FileFacts.joined(others)


def _sorted_places(root: Path, paths: pa.Array, twins: list[tuple[int, int]]) -> Iterator[dict[bytes, int]]:
    """Yield key -> row of the files in the order of their keys, many at a time.

    A path that occurs again, as in two lists of images, is added to `twins`: its row, and the first row with it.
    """
    order = order_of(paths)
    last, first = b"", -1
    for start in range(0, len(order), BATCH_ROWS):
        rows, places = order[start : start + BATCH_ROWS], dict[bytes, int]()
        for path, row in zip(paths.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True):
            key = os.fsencode(f"{root}/{path}")
            if key == last:
                twins.append((row, first))
            else:
                places[key], last, first = row, key, row
        if places:
            yield places


def _unmatched(facts: FileFacts, places: Mapping[bytes, int], found: Iterable[tuple[Any, ...]]) -> Iterator[FileFacts]:
    """Store what was found of files whose stamps are unchanged; yield the rest. places: key -> row."""

    def rest() -> Iterator[Facts]:
        for *values, key in found:
            known, row = Facts._make(values), places.get(key)
            if row is None or facts.stamp(row) != known.stamp:
                yield known
            else:
                facts.set(row, known)

    unmatched = rest()
    while some := list(islice(unmatched, BATCH_ROWS)):
        yield FileFacts.of(some)


def _remember(memo: DigestMemo, fresh: Mapping[str, Facts], checker: str) -> None:
    if not fresh:
        return

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(_CHECKS)
        rows = [(fact.sha256, checker, *fact[4:]) for fact in fresh.values() if fact.mtime_ns != _NEVER]
        connection.executemany("INSERT OR REPLACE INTO checks VALUES (?, ?, ?, ?, ?, ?)", rows)
        insert(connection, {file: (fact.stamp, fact.sha256) for file, fact in fresh.items() if fact.sha256})

    memo.run(work)


def _chunks(root: Path, paths: pa.Array, rows: Rows, chunk: int) -> Iterator[list[str]]:
    """Yield the files in some rows, `chunk` at a time."""
    for start in range(0, len(rows), chunk):
        yield [f"{root}/{path}" for path in paths.take(pa.array(rows[start : start + chunk])).to_pylist()]


def _read_all(
    chunks: Iterable[list[str]], decodings: Decodings, max_pixels: int, threads: int
) -> Generator[tuple[str, _Result], None, None]:
    """Yield each file with what was read of it."""

    def read(files: list[str]) -> list[tuple[str, _Result]]:
        return [(file, _read(file, decodings, max_pixels)) for file in files]

    with closing(map_ahead(read, chunks, threads=threads, ahead=4 * threads)) as results:
        for some in results:
            yield from some


def _read(file: str, decodings: Decodings, max_pixels: int) -> _Result:
    """Read one file, and decode it unless the result for the same bytes is known."""
    read_ns = time.time_ns()
    stamp = _stamp(file)
    try:
        content = read_bytes(file)
    except RejectedRow as error:
        if error.reason == "missing":
            raise ChangedError(f"{shown(file)} vanished") from error
        return _Result(_facts(stamp, "", Decoding(0, 0, error.reason, 0)), False, False)
    if len(content) != stamp.size or _stamp(file) != stamp:
        raise ChangedError(f"{shown(file)} changed")
    sha256 = digest_bytes(content)
    known = decodings.get(sha256)
    decoding = check(content, max_pixels) if known is None else known
    # A decoding that ran out of memory may succeed next time.
    settled = stamp.settled(read_ns) and decoding.reason != "out_of_memory"
    return _Result(_facts(stamp, sha256, decoding), known is None, settled)
