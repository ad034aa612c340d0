"""The caption store: the captions of one captioner, in Parquet shards.

    captions/<captioner fingerprint>/meta.json        the captioner
    captions/<captioner fingerprint>/...              its shards (captioning.store.shards)

Any number of processes can add shards at once, and a killed one leaves no half-written shard. A shard that does not
match its name is moved to quarantine/ with a warning, and its images are captioned again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from captioning.captioner import Captioner
from captioning.store.rows import CaptionRow
from captioning.store.shards import Shards
from data.files import full_disk_explained, write_json
from data.schemas import SHARD

_BLANK: Final = dict.fromkeys(SHARD.names)


class CaptionStore(Shards):
    """The captions of one captioner under `root`/captions. Safe for concurrent processes."""

    def __init__(self, root: Path, captioner: Captioner) -> None:
        super().__init__(root / "captions" / captioner.fingerprint)
        self.captioner = captioner

    def append(self, rows: Sequence[CaptionRow]) -> Path | None:
        """Write `rows` as one shard and return its path; do nothing for no rows.

        Raises ClipScgiError if the disk is full; earlier shards stay as they are.
        """
        if not rows:
            return None
        table = pa.Table.from_pylist([_BLANK | row.columns() for row in rows], schema=SHARD)
        with full_disk_explained(self.folder, "the newest captions could not be written"):
            self._describe()
            return self.write_part(table)

    def _describe(self) -> None:
        """Write meta.json unless it exists."""
        meta = self.folder / "meta.json"
        if not meta.exists():
            captioner = self.captioner
            identity = {"model_id": captioner.model_id, "model_revision": captioner.model_revision}
            write_json(meta, {"fingerprint": captioner.fingerprint, "ingredients": captioner.ingredients, **identity})
