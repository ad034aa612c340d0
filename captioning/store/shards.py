"""The shards of one captioner: Parquet files that are named by the digest of their bytes and renamed into place.

A *part* holds the captions of some seconds, as a worker wrote them. A *pack* holds the rows of many parts, sorted by
image (`captioning.store.compaction`). Names of packs sort before names of parts, so the row of a pack is used where
both have an image.

    pack-<digest>.parquet       rows of schemas.SHARD, one per image
    part-<digest>.parquet       rows of schemas.SHARD
    quarantine/                 damaged shards
    claims/                     locks of the workers (captioning.store.claims) and of compaction
"""

from __future__ import annotations

import io
import logging
import re
import time
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest_bytes, digest_file
from data.columns.digests import Digests, digests_of
from data.files import atomic_path
from data.schemas import SHARD

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"^(?:pack|part)-([0-9a-f]{32})\.parquet$")
_STALE_SECONDS: Final = 3600.0
_KEY: Final = "image_sha256"
_OF_ANOTHER_VERSION: Final = "its columns belong to another version"
_CHANGED: Final = "its content does not match the digest in its name"


class UnusableShardError(Exception):
    """A shard that must be set aside; the message gives the reason."""


class Content(NamedTuple):
    """The images of a shard, one per row. rows: all columns, if they were read."""

    digests: Digests
    rows: pa.Table | None


class Shards:
    """The shards in `folder`. Safe for concurrent processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> list[str]:
        """Return the names of the shards, sorted: packs before parts.

        A folder is not listed at one moment: a pack that appears meanwhile can be missed, and parts that it replaces
        too. Then the next listing has a pack that this one lacks.
        """
        names = self._listed()
        while not set(filter(is_pack, again := self._listed())) <= set(names):
            names = again
        return names

    def _listed(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _NAME.match(path.name))

    def count(self) -> int:
        """Return the number of captions, from the footers of the shards; an image captioned twice counts twice.

        A shard that cannot be read is not counted.
        """
        return sum(map(self.rows_of, self.shards()))

    def rows_of(self, name: str) -> int:
        """Return the number of rows of one shard, from its footer; 0 if it cannot be read."""
        try:
            return int(pq.read_metadata(self.folder / name).num_rows)
        except (OSError, pa.ArrowInvalid):
            return 0

    def read_shard(self, name: str) -> pa.Table:
        """Return the rows of one shard.

        Raises UnusableShardError if it is damaged, FileNotFoundError if another process has just moved its rows to a
        pack or set it aside.
        """
        content = (self.folder / name).read_bytes()
        if digest_bytes(content)[:32] != _digest_in(name):
            raise UnusableShardError(_CHANGED)
        table = pq.read_table(io.BytesIO(content))
        if not table.schema.equals(SHARD):
            raise UnusableShardError(_OF_ANOTHER_VERSION)
        return table

    def content_of(self, name: str) -> Content:
        """Return the images of one shard, one per row. Of a pack, only their column is read.

        Raises the errors of `read_shard`.
        """
        rows = None if is_pack(name) else self.read_shard(name)
        try:
            return Content(digests_of(self._read_images(name) if rows is None else rows[_KEY]), rows)
        except ValueError as error:
            raise UnusableShardError(f"it cannot be read ({error})") from error

    def _read_images(self, name: str) -> pa.ChunkedArray:
        try:
            with pq.ParquetFile(self.folder / name, page_checksum_verification=True) as file:
                if not file.schema_arrow.equals(SHARD):
                    raise UnusableShardError(_OF_ANOTHER_VERSION)
                return file.read([_KEY])[_KEY]
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnusableShardError(f"it cannot be read ({error})") from error

    def check(self, name: str) -> None:
        """Read one shard in full without keeping it. Raises UnusableShardError if its bytes have changed."""
        if digest_file(self.folder / name)[:32] != _digest_in(name):
            raise UnusableShardError(_CHANGED)

    def write_part(self, table: pa.Table) -> Path:
        """Write rows of schemas.SHARD as a part and return its path."""
        return self._write("part", table)

    def write_pack(self, table: pa.Table) -> Path:
        """Write rows of schemas.SHARD, sorted by image, as a pack and return its path."""
        return self._write("pack", table)

    def _write(self, kind: str, table: pa.Table) -> Path:
        buffer = io.BytesIO()
        if kind == "pack":  # whose images are looked up without reading the bytes that the digest in its name covers
            repetitive = [name for name in table.column_names if name != _KEY]
            pq.write_table(table, buffer, compression="zstd", use_dictionary=repetitive, write_page_checksum=True)
        else:
            pq.write_table(table, buffer, compression="zstd")
        content = buffer.getvalue()
        path = self.folder / f"{kind}-{digest_bytes(content)[:32]}.parquet"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        return path

    def remove(self, name: str) -> None:
        """Remove a shard whose rows are in a pack."""
        (self.folder / name).unlink(missing_ok=True)

    def set_aside(self, name: str, reason: str) -> None:
        """Move a shard to quarantine/ with a warning."""
        path = self.folder / name
        log.warning("caption shard %s moved to quarantine: %s; its images are captioned again", path, reason)
        quarantine = self.folder / "quarantine"
        quarantine.mkdir(exist_ok=True)
        try:
            path.replace(quarantine / name)
        except FileNotFoundError:
            log.info("another process has already moved %s", name)

    def remove_leftovers(self) -> None:
        """Remove temporary files older than an hour, which killed writers left behind."""
        for path in self.folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue


def stores_under(root: Path) -> list[Shards]:
    """Return the stores of all captioners under an artifact root."""
    return [Shards(path) for path in sorted((root / "captions").glob("*")) if path.is_dir()]


def is_pack(name: str) -> bool:
    """Return True if a shard is a pack."""
    return name.startswith("pack-")


def _digest_in(name: str) -> str:
    return name[5:37]
