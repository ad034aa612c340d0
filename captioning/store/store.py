"""The caption store: the captions of one captioner, in append-only Parquet shards.

A shard is named by the digest of its bytes and renamed into place, so any number of processes can add shards at once,
and a killed one leaves no half-written shard. A shard that does not match its name is moved to quarantine/ with a
warning, and its images are captioned again.

    captions/<captioner fingerprint>/meta.json                    the captioner
    captions/<captioner fingerprint>/part-<digest>.parquet        rows of schemas.SHARD
    captions/<captioner fingerprint>/quarantine/                  damaged shards
    captions/<captioner fingerprint>/claims/                      locks of the workers (captioning.store.claims)
"""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.captioner import Captioner
from captioning.store.rows import CaptionRow
from data.artifacts.fingerprint import digest_bytes
from data.files import atomic_path, full_disk_explained, write_json
from data.process.read_ahead import map_ahead
from data.schemas import SHARD

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"^part-([0-9a-f]{32})\.parquet$")
_STALE_SECONDS: Final = 3600.0
_READERS: Final = 8  # threads that read shards
_BLANK: Final = dict.fromkeys(SHARD.names)


class UnusableShardError(Exception):
    """A shard that must be set aside; the message gives the reason."""


class CaptionStore:
    """The captions of one captioner under `root`/captions. Safe for concurrent processes."""

    def __init__(self, root: Path, captioner: Captioner) -> None:
        self.folder = root / "captions" / captioner.fingerprint
        self.captioner = captioner

    def append(self, rows: Sequence[CaptionRow]) -> Path | None:
        """Write `rows` as one shard and return its path; do nothing for no rows.

        Raises ClipScgiError if the disk is full; earlier shards stay as they are.
        """
        if not rows:
            return None
        table = pa.Table.from_pylist([_BLANK | row.columns() for row in rows], schema=SHARD)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        content = buffer.getvalue()
        path = self.folder / f"part-{digest_bytes(content)[:32]}.parquet"
        with full_disk_explained(self.folder, "the newest captions could not be written"):
            self._describe()
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        return path

    def _describe(self) -> None:
        """Write meta.json unless it exists."""
        meta = self.folder / "meta.json"
        if not meta.exists():
            captioner = self.captioner
            identity = {"model_id": captioner.model_id, "model_revision": captioner.model_revision}
            write_json(meta, {"fingerprint": captioner.fingerprint, "ingredients": captioner.ingredients, **identity})

    def shards(self) -> list[str]:
        """Return the names of the shards, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _NAME.match(path.name))

    def read_shard(self, name: str) -> pa.Table:
        """Return the rows of one shard.

        Raises UnusableShardError if it is damaged, FileNotFoundError if another process has just set it aside.
        """
        content = (self.folder / name).read_bytes()
        if digest_bytes(content)[:32] != name[5:37]:
            raise UnusableShardError("its content does not match the digest in its name")
        table = pq.read_table(io.BytesIO(content))
        if not table.schema.equals(SHARD):
            raise UnusableShardError("its columns belong to another version")
        return table

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


class Snapshot:
    """The content of a store as of the last `refresh`, which reads only new shards."""

    def __init__(self, store: CaptionStore) -> None:
        self._store = store
        self._tables: dict[str, pa.Table] = {}
        self.images: set[str] = set()
        """The digests of the images that have a caption."""

    def refresh(self) -> None:
        """Read the new shards, and set damaged ones aside."""
        fresh = [name for name in self._store.shards() if name not in self._tables]
        if not fresh:
            return
        tables = map_ahead(self._read_or_set_aside, fresh, threads=_READERS, ahead=2 * _READERS)
        for name, table in zip(fresh, tables, strict=True):
            if table is not None:
                self._tables[name] = table
                self.images.update(table["image_sha256"].to_pylist())

    def _read_or_set_aside(self, name: str) -> pa.Table | None:
        try:
            return self._store.read_shard(name)
        except UnusableShardError as error:
            self._store.set_aside(name, str(error))
        except FileNotFoundError:
            log.info("another process has already moved %s", name)
        return None

    def table(self) -> pa.Table:
        """Return one row per captioned image, sorted by image_sha256.

        If two processes captioned an image at once, the row of the shard whose name sorts first is used.
        """
        tables = [self._tables[name] for name in sorted(self._tables)]
        return _distinct(pa.concat_tables([SHARD.empty_table(), *tables]))


def _distinct(table: pa.Table) -> pa.Table:
    """Keep the first row of each image_sha256 and sort by it."""
    rows = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = rows.group_by("image_sha256", use_threads=False).aggregate([("row", "min")])
    keep = first.sort_by("image_sha256")["row_min"]
    return table.take(keep)
