"""Images in tar shards: a path such as train-000000.tar/0001.jpg is a member of a shard, read in place by its offset.

The offsets are in the table of the shard, a mapped Arrow file. The reader `webdataset` writes it to the artifact store;
without it, the headers of the shard are read once per process.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa

from data.errors import RejectedRow
from data.sources import remote
from data.sources.address import is_remote
from data.sources.blocks import open_object
from data.sources.stamps import numbers_of
from data.sources.tar import BrokenTarError, CompressedTarError, members

SUFFIX: Final = ".tar"
_MARK: Final = f"{SUFFIX}/"
_MOST_TABLES: Final = 256
"""Tables that a process keeps open."""
_MOST_WALKED: Final = 16_000_000
"""Images in the tables made from headers that a process keeps: to make one again costs a pass over its shard."""
_MOST_FOLDERS: Final = 16
_DIGEST_BYTES: Final = 32
_FRESH_SECONDS: Final = 60
"""Time after which a shard in a store that this process has not listed is asked for its etag again."""

ShardStamp = tuple[int, int, int]
"""Size and two times of a shard, or its size, time of writing and etag (`data.sources.listing.Entry`)."""


class Place(NamedTuple):
    """A member of a shard. shard: absolute path, or the path that stands for an address."""

    shard: str
    member: str


class Span(NamedTuple):
    """Where the content of a member lies in its shard, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ShardTable:
    """The images of one shard. rows: one per image, sorted by name, at least with the columns name, offset and size.

    facts: what else the reader wrote about the shard.
    """

    stamp: ShardStamp
    rows: pa.Table
    facts: Mapping[str, Any]

    @property
    def broken(self) -> str:
        """Why the shard cannot be read to its end, "" if it can; the table of a broken shard does not have rows."""
        return str(self.facts.get("broken", ""))

    def row(self, member: str) -> int | None:
        """Return the number of the row of a member, None if it does not exist."""
        names = self.rows["name"]
        at = bisect_left(range(len(names)), member, key=lambda row: str(names[row].as_py()))
        return at if at < len(names) and names[at].as_py() == member else None

    def span(self, member: str) -> Span | None:
        """Return where a member lies, None if it does not exist."""
        row = self.row(member)
        return None if row is None else Span(self.rows["offset"][row].as_py(), self.rows["size"][row].as_py())


_LOCK: Final = threading.RLock()
_FOLDERS: OrderedDict[Path, None] = OrderedDict()
_TABLES: OrderedDict[str, ShardTable] = OrderedDict()
_WALKED: OrderedDict[str, ShardTable] = OrderedDict()
_INTACT: dict[Path, ShardStamp] = {}
_LOADING: dict[str, threading.Lock] = {}
_ASKED: dict[str, tuple[float, ShardStamp | None]] = {}


def look_in(folder: Path) -> None:
    """Look for the tables of shards in `folder` too. Every artifact store calls this."""
    with _LOCK:
        _FOLDERS[folder] = None
        _FOLDERS.move_to_end(folder)
        while len(_FOLDERS) > _MOST_FOLDERS:
            _FOLDERS.popitem(last=False)


def place_of(path: Path | str) -> Place | None:
    """Return the member of a shard that `path` names, None if it is not below a shard."""
    text = str(path)
    at = text.find(_MARK)
    while at >= 0:
        shard = text[: at + len(SUFFIX)]
        if stamp_of(shard) is not None:
            return Place(shard, text[at + len(_MARK) :])
        at = text.find(_MARK, at + 1)
    return None


def stamp_of(shard: str) -> ShardStamp | None:
    """Return the stamp of a shard, None if it is not a file."""
    if is_remote(shard):
        return _stamp_of_object(shard)
    try:
        status = os.stat(shard)  # noqa: PTH116 - called once per image
    except (OSError, ValueError):
        return None
    return numbers_of(status) if stat.S_ISREG(status.st_mode) else None


def stamp_now(shard: str) -> ShardStamp | None:
    """Return `stamp_of` a shard, which a store that cannot be listed is asked for again."""
    _ASKED.pop(shard, None)
    return stamp_of(shard)


def _stamp_of_object(shard: str) -> ShardStamp | None:
    now = time.monotonic()
    if not remote.is_known(shard):
        asked = _ASKED.get(shard)
        if asked is not None and now - asked[0] < _FRESH_SECONDS:
            return asked[1]
    entry = remote.entry_of(shard)
    found = None if entry is None else (entry.size, entry.mtime_ns, entry.tag)
    _ASKED[shard] = (now, found)
    return found


def size_of(place: Place) -> int | None:
    """Return the size of a member in bytes, None if it does not exist."""
    span = table_of(place.shard).span(place.member)
    return None if span is None else span.size


def read_member(place: Place, most: int) -> bytes:
    """Return the content of a member by one read of its shard.

    Raises RejectedRow (``missing``, ``too_large`` for more than `most` bytes, ``changed``, ``truncated``), and the
    errors of `data.sources.remote.read`.
    """
    span = table_of(place.shard).span(place.member)
    if span is None:
        raise RejectedRow("missing")
    if span.size > most:
        raise RejectedRow("too_large")
    try:
        content = _read(place.shard, span)
    except MemoryError as error:
        raise RejectedRow("out_of_memory") from error
    if len(content) != span.size:
        raise RejectedRow("changed")
    return content


def _read(shard: str, span: Span) -> bytes:
    if is_remote(shard):
        return remote.read_range(shard, span.offset, span.size)
    try:
        handle = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, span.size, span.offset)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise RejectedRow("missing") from error
    except OSError as error:
        raise RejectedRow("unreadable") from error


def table_of(shard: str) -> ShardTable:
    """Return the table of a shard as it is now: from memory, from the folders of `look_in`, or from its headers.

    Raises RejectedRow if the shard cannot be read (``missing``, ``unreadable``, ``truncated``).
    """
    stamp = stamp_of(shard)
    if stamp is None:
        raise RejectedRow("missing")
    if (known := _recalled(shard, stamp)) is not None:
        return known
    with _LOCK:
        loading = _LOADING.setdefault(shard, threading.Lock())
    with loading:  # one thread reads the headers, and the others wait
        if (known := _recalled(shard, stamp)) is not None:
            return known
        found = next((table for table in known_tables(shard) if table.stamp == stamp), None)
        _keep(shard, found or _walked(shard, stamp), is_walked=found is None)
        known = _recalled(shard, stamp)
    assert known is not None
    return known


def _keep(shard: str, table: ShardTable, *, is_walked: bool) -> None:
    with _LOCK:
        forget(shard)
        (_WALKED if is_walked else _TABLES)[shard] = table
        while len(_TABLES) > _MOST_TABLES:
            _TABLES.popitem(last=False)
        while len(_WALKED) > 1 and sum(len(one.rows) for one in _WALKED.values()) > _MOST_WALKED:
            _WALKED.popitem(last=False)


def forget(shard: str) -> None:
    """Look for the table of a shard anew: it was made again, perhaps with the same stamp."""
    with _LOCK:
        _WALKED.pop(shard, None)
        _TABLES.pop(shard, None)


def _recalled(shard: str, stamp: ShardStamp) -> ShardTable | None:
    """Return the table of a shard from memory, None if it is not there or of another stamp.

    Raises RejectedRow (``truncated``) if the shard cannot be read to its end.
    """
    with _LOCK:
        tables = _TABLES if shard in _TABLES else _WALKED
        known = tables.get(shard)
        if known is None or known.stamp != stamp:
            return None
        tables.move_to_end(shard)
    if known.broken:
        raise RejectedRow("truncated")
    return known


def known_tables(shard: str) -> Iterator[ShardTable]:
    """Yield the tables of a shard in the folders of `look_in`, whatever their stamps, the newest folder first."""
    with _LOCK:
        folders = list(reversed(_FOLDERS))
    for folder in folders:
        if (table := load(folder, shard)) is not None:
            yield table


def open_shard(shard: str, stamp: ShardStamp) -> IO[bytes]:
    """Open a shard as a stream. Raises OSError if a local one cannot be read."""
    return open_object(shard, stamp[0]) if is_remote(shard) else Path(shard).open("rb", buffering=1 << 20)


def _walked(shard: str, stamp: ShardStamp) -> ShardTable:
    """Return a table made from the headers of a shard."""
    broken = ""
    try:
        with open_shard(shard, stamp) as stream:
            spans = {
                str(PurePosixPath(one.name)): Span(one.offset, one.size)
                for one in members(stream)
                if one.kind == "file" and _is_text(one.name)
            }
    except (BrokenTarError, CompressedTarError) as error:
        spans, broken = {}, str(error)
    except OSError as error:
        raise RejectedRow("unreadable") from error
    names = sorted(spans)
    columns = {
        "name": names,
        "offset": [spans[one].offset for one in names],
        "size": [spans[one].size for one in names],
    }
    schema = pa.schema([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    return ShardTable(stamp=stamp, rows=pa.table(columns, schema=schema), facts={"broken": broken})


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8; the reader rejects such members
        return False
    return True


def table_file(folder: Path, shard: str) -> Path:
    """Return the file of the table of a shard in a folder of tables."""
    key = hashlib.sha256(os.fsencode(shard)).hexdigest()[:20]
    return folder / f"{_plain(shard)}-{key}.arrow"


def _plain(shard: str) -> str:
    """Return the name of a shard with letters that every file system takes."""
    name = shard.rpartition("/")[2]
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)[:80]


def load(folder: Path, shard: str) -> ShardTable | None:
    """Return the table of a shard in a folder, whatever its stamp; None if it does not exist or is damaged."""
    return _loaded(table_file(folder, shard), shard)


def _loaded(file: Path, shard: str | None) -> ShardTable | None:
    try:
        with pa.memory_map(str(file)) as source:
            content = source.read_buffer()
        with pa.ipc.open_file(pa.BufferReader(_checked(file, content))) as opened:
            rows, facts = opened.read_all(), json.loads(opened.schema.metadata[b"shard"])
        size, first, second = facts["stamp"]
        is_other = shard is not None and facts["shard"] != shard
        return None if is_other else ShardTable(stamp=(size, first, second), rows=rows, facts=facts)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _checked(file: Path, content: pa.Buffer) -> pa.Buffer:
    """Return the table in a file without its digest; raise ValueError if it is damaged: Arrow would read anything."""
    table, last = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    stamp = numbers_of(file.stat())
    if _INTACT.get(file) != stamp:
        if hashlib.blake2b(table, digest_size=_DIGEST_BYTES).digest() != last.to_pybytes():
            raise ValueError(f"{file} is damaged")
        _INTACT[file] = stamp
    return table


def seal(file: Path) -> None:
    """Append the digest of its content to the file of a table, without which it is not read."""
    with file.open("rb+") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).digest()
        stream.seek(0, os.SEEK_END)
        stream.write(digest)


def tables_in(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files in a folder of tables, each with its shard; None if the file is damaged or not finished."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        table = _loaded(file, None)
        yield file, None if table is None else str(table.facts["shard"])


def is_gone(shard: str) -> bool:
    """Return True if a shard does not exist; False if it cannot be told."""
    if is_remote(shard):
        return remote.is_gone(shard)
    try:
        Path(shard).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def roots_of(folder: Path, path: str, sha256: str) -> Iterator[Path]:
    """Yield the folders in which `path` is an image of a shard with this digest, by the tables in `folder`."""
    at = path.find(_MARK)
    while at >= 0:
        shard, member = path[: at + len(SUFFIX)], path[at + len(_MARK) :]
        for file in sorted(folder.glob(f"{_plain(shard)}-*.arrow")):
            table = _loaded(file, None)
            row = table.row(member) if table is not None else None
            if table is not None and row is not None and table.rows["sha256"][row].as_py() == bytes.fromhex(sha256):
                whole = str(table.facts["shard"])
                if whole.endswith(f"/{shard}"):
                    yield Path(whole.removesuffix(f"/{shard}"))
        at = path.find(_MARK, at + 1)
