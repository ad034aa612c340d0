"""What ``watch-datasets`` remembers of a data set: its hash, and the digest of each image to count what changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest
from data.artifacts.inventory import take_inventory
from data.artifacts.store import ArtifactStore
from data.errors import DataError
from data.files import atomic_path, read_json, write_json
from data.index.stage import STAGE, Survey

Rows = dict[str, str]
"""Path and labels of an image -> digest of its bytes."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Known:
    """How a data set was when it was last taken for finished."""

    dataset_hash: str
    rows: Rows
    announced: bool
    old: str
    counts: dict[str, int]


class Memory:
    """What is remembered of one data set: watch/<name>.json, and its images in watch/<name>.parquet."""

    def __init__(self, store: ArtifactStore, dataset: str) -> None:
        # Names are free text; a short digest keeps two of them apart whatever a file system makes of them.
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in dataset)
        self.state = store.root / "watch" / f"{plain}-{digest(dataset)[:8]}.json"
        self.dataset = dataset

    def exists(self) -> bool:
        """Say whether anything is remembered."""
        return self.state.exists()

    def read(self) -> Known | None:
        """Return what is remembered, or None where nothing is, or nothing that can be used."""
        try:
            state = read_json(self.state)
            rows = _read_rows(self.state.with_name(state["rows"]), key=state["dataset_hash"])
            return Known(
                dataset_hash=state["dataset_hash"],
                rows=rows,
                announced=bool(state["announced"]),
                old=state["old"],
                counts={name: int(state["counts"][name]) for name in ("added", "removed", "changed")},
            )
        except FileNotFoundError:
            return None
        except (DataError, OSError, KeyError, TypeError, ValueError) as error:
            _LOG.warning("%s cannot be used (%s) and is begun anew", self.state, error)
            return None

    def write(
        self,
        dataset_hash: str,
        rows: Rows,
        *,
        announced: bool,
        counts: Mapping[str, int] | None = None,
        old: str = "",
    ) -> None:
        """Remember; the small file last, so that a kill in between leaves the older memory whole."""
        stem = self.state.stem
        target = self.state.with_name(f"{stem}.{dataset_hash[:12]}.parquet")
        _write_rows(target, rows, key=dataset_hash)
        write_json(
            self.state,
            {
                "dataset": self.dataset,
                "dataset_hash": dataset_hash,
                "rows": target.name,
                "announced": announced,
                "old": old,
                "counts": dict(counts or {"added": 0, "removed": 0, "changed": 0}),
            },
        )
        for stale in self.state.parent.glob(f"{stem}.*.parquet"):
            if stale != target:
                stale.unlink(missing_ok=True)


def _write_rows(path: Path, rows: Rows, *, key: str) -> None:
    schema = pa.schema([("image", pa.string()), ("sha256", pa.string())], metadata={b"dataset_hash": key.encode()})
    table = pa.table({"image": list(rows), "sha256": list(rows.values())}, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read_rows(path: Path, *, key: str) -> Rows:
    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"dataset_hash") != key.encode():
        raise ValueError(f"{path} is of another state of the data set")
    return dict(zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def rows_of(found: Survey) -> Rows:
    """Return the images of a survey."""
    return {
        _image(record.split, record.path, record.pid, record.camid): fact.sha256
        for record, fact in zip(found.records, found.facts, strict=True)
    }


def _image(split: str, path: str, pid: int, camid: int) -> str:
    return f"{path}\0{split}\0{pid}\0{camid}"


def compare(old: Rows, new: Rows) -> dict[str, int]:
    """Count images by path: new ones, gone ones, and those with other bytes or labels."""
    before = {image.split("\0", 1)[0]: (image, sha256) for image, sha256 in old.items()}
    after = {image.split("\0", 1)[0]: (image, sha256) for image, sha256 in new.items()}
    shared = before.keys() & after.keys()
    return {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[path] != after[path] for path in shared),
    }


def from_index(store: ArtifactStore, label: str) -> Known | None:
    """Return the data set as its newest intact index has it, or None when no run has indexed it yet."""
    entries = [entry for entry in take_inventory(store, STAGE).entries if entry.label == label]
    for entry in reversed(entries):
        if store.problems(STAGE, entry.fingerprint):
            continue
        columns = pq.read_table(entry.folder / "images.parquet", columns=["split", "path", "pid", "camid", "sha256"])
        rows = {_image(*row[:4]): row[4] for row in zip(*(column.to_pylist() for column in columns), strict=True)}
        key = read_json(entry.folder / "dataset.json")["dataset_hash"]
        return Known(dataset_hash=key, rows=rows, announced=False, old="", counts=compare({}, {}))
    return None
