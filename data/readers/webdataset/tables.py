"""Tables of shards (`data.sources.shards`), each made by one pass over its shard and kept while its stamp is the same.

The pass digests and decodes every image on its way, so that the index does not read a shard again.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa

from data.artifacts.digests import Stamp
from data.artifacts.fingerprint import digest_bytes
from data.errors import RejectedRow, RetryableError
from data.files import atomic_path, full_disk_explained
from data.images.check import Decoding, check, checker_of
from data.images.decode import MAX_BYTES, MAX_PIXELS
from data.process.read_ahead import map_ahead
from data.progress import ProgressFn, silent
from data.readers.webdataset.samples import IMAGE_ENDINGS, MOST_TEXT, Fields, Labels, Name, Refused, Samples, name_of
from data.sources.address import shown
from data.sources.shards import (
    ShardStamp,
    ShardTable,
    forget,
    known_tables,
    load,
    open_shard,
    seal,
    stamp_now,
    table_file,
)
from data.sources.tar import BrokenTarError, Member, members

_VERSION: Final = 2
_MOST_THREADS: Final = 8
_SEVERAL: Final = (
    "the sample has more than one image; keep one, and give others an ending that is not read, such as .mask.png"
)
_SCHEMA: Final = pa.schema(
    [
        *(("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())),
        *(("sha256", pa.binary(32)), ("width", pa.int32()), ("height", pa.int32())),
        *(("reason", pa.string()), ("flat", pa.int8()), ("problem", pa.string())),
        *((name, pa.string()) for name in Fields._fields),
    ]
)
"""Columns of a table. The last ones are labels as JSON, null if the sample has no such field."""


class _Image(NamedTuple):
    name: Name
    member: Member
    content: bytes | None


class _Row(NamedTuple):
    """An image. sha256: None if its content was not read."""

    name: Name
    member: Member
    sha256: bytes | None
    decoding: Decoding


@dataclass(kw_only=True)
class ShardReading:
    """How shards are read, and what was read.

    folder: where tables are kept; None: images are neither digested nor decoded, and nothing is kept. threads: that
    decode; 0 for one per core, at most 8. reread: make every table anew. n_read, n_decoded: images in the tables that
    were made. n_unsettled: those of shards that have to be read again next time.
    """

    folder: Path | None = None
    max_pixels: int = MAX_PIXELS
    threads: int = 0
    reread: bool = False
    progress: ProgressFn = silent
    n_read: int = 0
    n_decoded: int = 0
    n_unsettled: int = 0
    _used: dict[str, ShardTable] = field(default_factory=dict)
    _made: dict[str, ShardStamp] = field(default_factory=dict)

    def table(self, shard: str, fields: Fields) -> ShardTable:
        """Return the table of a shard as it is now, made if necessary.

        Raises BrokenTarError, CompressedTarError, RejectedRow (``missing``) and OSError for a shard that cannot be
        read, and RetryableError for one that changes meanwhile.
        """
        stamp = stamp_now(shard)
        if stamp is None:
            raise RejectedRow("missing")
        known = (table for table in self._known(shard) if self._is_usable(table, shard, stamp, fields))
        table = next(known, None) or self._make(shard, stamp, fields)
        if table.broken:
            raise BrokenTarError(table.broken)
        self._used[shard] = table
        return table

    def _known(self, shard: str) -> Iterator[ShardTable]:
        if shard in self._used:
            yield self._used[shard]
        elif self.folder is None:
            yield from known_tables(shard)
        elif (table := load(self.folder, shard)) is not None:
            yield table

    def _is_usable(self, table: ShardTable, shard: str, stamp: ShardStamp, fields: Fields) -> bool:
        facts = table.facts
        is_own = self._made.get(shard) == stamp
        is_current = table.stamp == stamp and facts.get("version") == _VERSION and facts.get("fields") == [*fields]
        is_checked = self.folder is None or facts.get("checker") == checker_of(self.max_pixels)
        return is_current and is_checked and (is_own or (bool(facts.get("settled")) and not self.reread))

    def _make(self, shard: str, stamp: ShardStamp, fields: Fields) -> ShardTable:
        read_ns, samples, broken = time.time_ns(), Samples(fields=fields), ""
        try:
            rows = self._read(shard, stamp, samples)
        except BrokenTarError as error:
            rows, samples, broken = [], Samples(fields=fields), str(error)
        if stamp_now(shard) != stamp:
            raise RetryableError(
                f"{shown(shard)} changed while it was read. Wait until whatever writes there has finished, then run"
                " again"
            )
        # An image that ran out of memory may be decoded next time.
        is_settled = Stamp(*stamp).settled(read_ns) and all(row.decoding.reason != "out_of_memory" for row in rows)
        how = {"version": _VERSION, "fields": [*fields], "checker": checker_of(self.max_pixels), "settled": is_settled}
        table = _table(rows, samples, stamp, {"shard": shard, "stamp": [*stamp], "broken": broken, **how})
        self._made[shard] = stamp
        return table if self.folder is None else self._keep(self.folder, shard, table)

    def _keep(self, folder: Path, shard: str, table: ShardTable) -> ShardTable:
        """Write a table that was made; return the mapped file."""
        count = len(table.rows)
        self.n_read, self.n_decoded = self.n_read + count, self.n_decoded + count
        self.n_unsettled += 0 if table.facts["settled"] else count
        try:
            with full_disk_explained(folder, "the table of a tar shard could not be written"):
                _write(table_file(folder, shard), table)
        except OSError as error:
            raise RetryableError(
                f"{folder}, which has the tables of tar shards, cannot be written ({error.strerror}). Make it writable,"
                " then run again"
            ) from error
        forget(shard)
        return load(folder, shard) or table

    def _read(self, shard: str, stamp: ShardStamp, samples: Samples) -> list[_Row]:
        """Return the images of a shard in its order, and add everything else to `samples`."""
        threads = self.threads or min(os.cpu_count() or 1, _MOST_THREADS)
        needs_pixels = self.folder is not None
        with open_shard(shard, stamp) as stream, closing(_images(stream, samples, needs_pixels)) as images:
            rows = map_ahead(self._examined, images, threads=threads, ahead=4 * threads)
            with closing(rows):
                return list(rows)

    def _examined(self, image: _Image) -> _Row:
        name, member, content = image
        if content is None:
            return _Row(name, member, None, Decoding(0, 0, "too_large" if member.size > MAX_BYTES else "", 0))
        return _Row(name, member, bytes.fromhex(digest_bytes(content)), check(content, self.max_pixels))

    def tables(self) -> Mapping[str, ShardTable]:
        """Return shard -> table of all shards that `table` was asked for, if images are digested."""
        return self._used if self.folder is not None else {}


def _images(stream: IO[bytes], samples: Samples, needs_pixels: bool) -> Generator[_Image, None, None]:
    """Yield the images of a shard in its order, and add everything else to `samples`."""
    for member in members(stream):
        name = samples.admit(member)
        if name is None:
            continue
        if name.ending in IMAGE_ENDINGS:
            is_read = needs_pixels and member.size <= MAX_BYTES
            yield _Image(name, member, _content(stream, member) if is_read else None)
        elif samples.wants(name):
            samples.add(name, _content(stream, member) if member.size <= MOST_TEXT else None)


def _content(stream: IO[bytes], member: Member) -> bytes:
    stream.seek(member.offset)
    return stream.read(member.size)


def _usable(rows: list[_Row], samples: Samples) -> list[_Row]:
    """Return the images whose name and sample are unambiguous; refuse the others."""
    twice, of_sample = samples.twice(), defaultdict[str, set[str]](set)
    for row in rows:
        of_sample[row.name.key].add(row.name.path)
    for name in map(name_of, twice):
        if name.key in samples.labels:
            samples.labels[name.key].problem = f"more than one member is called {name.path}; keep one"
    kept = []
    for row in rows:
        path, images = row.name.path, of_sample[row.name.key]
        if path in twice:
            detail = f"{samples.names[path]} members of the shard have this name; keep one"
            samples.refused.append(Refused(path, "duplicate_member", detail))
        elif len(images) > 1:
            samples.refused.append(Refused(path, "several_images", f"{_SEVERAL}: {', '.join(sorted(images))}"))
        else:
            kept.append(row)
    return kept


def _table(rows: list[_Row], samples: Samples, stamp: ShardStamp, how: dict[str, Any]) -> ShardTable:
    """Return the table of a shard. how: what else to store about the way it was made."""
    alone = sorted(samples.keys - {row.name.key for row in rows})
    usable = sorted(_usable(rows, samples), key=lambda row: row.name.path)
    facts = {
        **how,
        "refused": [[*one] for one in samples.refused],
        "unread": samples.unread,
        "alone": [len(alone), *alone[:1]],  # samples without an image, and the first of them
        "seen": sorted(samples.seen),
    }
    return ShardTable(stamp=stamp, rows=_columns(usable, samples), facts=facts)


def _columns(rows: list[_Row], samples: Samples) -> pa.Table:
    labels = [samples.labels.get(row.name.key) or Labels() for row in rows]
    columns: dict[str, list[Any]] = {
        "name": [row.name.path for row in rows],
        "offset": [row.member.offset for row in rows],
        "size": [row.member.size for row in rows],
        "sha256": [row.sha256 for row in rows],
        **{name: [getattr(row.decoding, name) for row in rows] for name in Decoding._fields},
        "problem": [one.problem for one in labels],
        **{column: [one.cells.get(name) for one in labels] for column, name in samples.fields._asdict().items()},
    }
    return pa.table(columns, schema=_SCHEMA)


def _write(file: Path, table: ShardTable) -> None:
    schema = _SCHEMA.with_metadata({b"shard": json.dumps(table.facts).encode()})
    with atomic_path(file) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table.rows.cast(schema), max_chunksize=max(1, len(table.rows)))
        seal(temporary)
