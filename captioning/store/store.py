"""The caption store: what one captioner has written so far, in append-only Parquet shards.

A shard is named by the digest of its bytes and is renamed into place, so that any number of processes can add shards
at once and a killed one leaves nothing half-written behind. A shard whose bytes do not fit its name is set aside with
a warning; its images are simply captioned again.

    captions/<captioner fingerprint>/meta.json                    who captioned
    captions/<captioner fingerprint>/part-<digest>.parquet        rows of schemas.SHARD
    captions/<captioner fingerprint>/quarantine/                  damaged shards
    captions/<captioner fingerprint>/claims/                      who works on what (captioning.store.claims)
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


class CaptionStore:
    """The captions of one captioner under `root`/captions. Safe with many processes at once."""

    def __init__(self, root: Path, captioner: Captioner) -> None:
        self.folder = root / "captions" / captioner.fingerprint
        self.captioner = captioner

    def append(self, rows: Sequence[CaptionRow]) -> Path | None:
        """Write `rows` as one shard; do nothing for no rows.

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
        meta = self.folder / "meta.json"
        if not meta.exists():
            captioner = self.captioner
            identity = {"model_id": captioner.model_id, "model_revision": captioner.model_revision}
            write_json(meta, {"fingerprint": captioner.fingerprint, "ingredients": captioner.ingredients, **identity})

    def read(self) -> pa.Table:
        """Return one row per captioned image, sorted by image_sha256.

        An image in two shards (two processes captioned it at once) has the row of the shard whose name sorts first.
        """
        snapshot = Snapshot(self)
        snapshot.refresh()
        return snapshot.table()

    def shards(self) -> list[str]:
        """Return the names of the shards, sorted."""
        if not self.folder.is_dir():
            return []
        self._tidy()
        return sorted(path.name for path in self.folder.iterdir() if _NAME.match(path.name))

    def read_shard(self, name: str) -> pa.Table | None:
        """Return the rows of one shard, or None if it is damaged and was set aside."""
        path = self.folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # another process has just set it aside
            return None
        if digest_bytes(content)[:32] != name[5:37]:
            self._set_aside(path, "its bytes are not those that were written")
            return None
        table = pq.read_table(io.BytesIO(content))
        if not table.schema.equals(SHARD):
            self._set_aside(path, "its columns are those of another version")
            return None
        return table

    def _set_aside(self, path: Path, reason: str) -> None:
        log.warning("caption shard %s is set aside: %s; its images are captioned again", path, reason)
        quarantine = self.folder / "quarantine"
        quarantine.mkdir(exist_ok=True)
        try:
            path.replace(quarantine / path.name)
        except FileNotFoundError:
            log.info("another process has already set %s aside", path.name)

    def _tidy(self) -> None:
        for path in self.folder.glob(".*.tmp"):  # left by a process killed while writing
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue


class Snapshot:
    """What the store holds, as of the last `refresh`, which reads only the shards that came since."""

    def __init__(self, store: CaptionStore) -> None:
        self._store = store
        self._tables: dict[str, pa.Table] = {}
        self.images: set[str] = set()
        """The digests of the images that have a caption."""

    def refresh(self) -> None:
        """Read what is new."""
        fresh = [name for name in self._store.shards() if name not in self._tables]
        if not fresh:
            return
        tables = map_ahead(self._store.read_shard, fresh, threads=_READERS, ahead=2 * _READERS)
        for name, table in zip(fresh, tables, strict=True):
            if table is not None:
                self._tables[name] = table
                self.images.update(table["image_sha256"].to_pylist())

    def table(self) -> pa.Table:
        """Return what `CaptionStore.read` returns."""
        tables = [self._tables[name] for name in sorted(self._tables)]
        return _distinct(pa.concat_tables([SHARD.empty_table(), *tables]))


def _distinct(table: pa.Table) -> pa.Table:
    """Keep the first row of each image_sha256 and sort by it."""
    rows = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    first = rows.group_by("image_sha256", use_threads=False).aggregate([("row", "min")])
    keep = first.sort_by("image_sha256")["row_min"]
    return table.take(keep)
