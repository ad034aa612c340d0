"""A survey of a dataset: the images as they are on disk, and the files of the index artifact made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.artifacts.contents import IMAGES_FILE, SENTENCES_FILE
from data.artifacts.fingerprint import digest
from data.columns.digests import texts_of
from data.columns.records import Records
from data.columns.rejected import RejectedRows
from data.columns.source import BATCH_ROWS, in_blocks
from data.datasets import DatasetConfig
from data.errors import counted
from data.files import write_json, write_tables
from data.index.facts import FileFacts
from data.index.rules import identities
from data.index.split_file import SPLIT_FILE, write_split
from data.people import UNKNOWN_CAMERA
from data.readers.base import Scan
from data.schemas import IMAGES, LABELED_IMAGES, REJECTED, SENTENCES
from data.splits import SPLITS
from data.stages.images import DESCRIPTION_FILE


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The current state of a dataset on disk, which the index stage writes.

    root: absolute folder that the paths are relative to. records, facts: the usable images, in parallel columns sorted
    by (split, path). rejected: sorted. split_by_rule: True if the splits are not the reader's own. description: content
    of dataset.json. n_read, n_decoded: files read and decoded this time; 0 if nothing changed.
    """

    root: Path
    records: Records
    facts: FileFacts
    rejected: RejectedRows
    split_by_rule: bool
    description: dict[str, Any]
    n_read: int
    n_decoded: int
    n_unsettled: int

    @property
    def dataset_hash(self) -> str:
        """Digest (32 hex digits) of reader, version, and each image's split, path, labels, bytes and sentences."""
        return str(self.description["dataset_hash"])

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for the user, including one about rejected files."""
        return tuple(self.description["notices"])

    @property
    def note(self) -> str:
        """The numbers of images, rejected files and files read."""
        return note_of(len(self.records), len(self.rejected), self.n_read)


def note_of(images: int, rejected: int, read: int) -> str:
    """Return the numbers of images, rejected files and files read, for people."""
    return f"{counted(images, 'image')}, {rejected} rejected, {read} read"


def describe(
    config: DatasetConfig,
    *,
    scan: Scan,
    records: Records,
    facts: FileFacts,
    rejected: RejectedRows,
    notices: list[str],
) -> dict[str, Any]:
    """Return the content of dataset.json."""
    people = identities(records)
    counts = {}
    for split in SPLITS:
        here = records.in_split(split)
        cameras = set(np.unique(records.camids[here]).tolist()) - {UNKNOWN_CAMERA}
        counts[split] = {"images": int(here.sum()), "identities": len(people[split]), "cameras": len(cameras)}
    return {
        "name": config.label,
        "reader": scan.name,
        "version": scan.version,
        "dataset_hash": _dataset_hash(scan, records, facts),
        "counts": counts,
        "junk_left_out": scan.n_junk,
        "rejected": len(rejected),
        "rejected_by_reason": rejected.counts(),
        "notices": notices,
    }


def _dataset_hash(scan: Scan, records: Records, facts: FileFacts) -> str:
    """Digest the sorted rows. Paths do not contain NUL, and labels and sentences are escaped: different rows give
    different text.
    """
    hasher = hashlib.sha256(digest({"reader": scan.name, "version": scan.version}).encode())
    for some, known in zip(records.batches(), facts.batches(), strict=True):
        rows = []
        for record, sha256 in zip(some, known.texts(), strict=True):
            label = f"\0{json.dumps(record.label)}" if record.label else ""
            sentences = f"\0\0{json.dumps(record.sentences)}" if record.sentences else ""
            rows.append(f"\n{record.split}\0{record.path}\0{record.pid}\0{record.camid}\0{sha256}{label}{sentences}")
        hasher.update("".join(rows).encode())
    return hasher.hexdigest()[:32]


def write_survey(folder: Path, found: Survey) -> None:
    """Write the files of the artifact."""
    schema = LABELED_IMAGES if found.records.has_labels() else IMAGES
    write_tables(folder / IMAGES_FILE, in_blocks(_image_rows(found, schema), BATCH_ROWS), schema)
    blocks = in_blocks(found.rejected.batches(), BATCH_ROWS) if len(found.rejected) else found.rejected.batches()
    write_tables(folder / "rejected.parquet", blocks, REJECTED)
    if found.records.has_sentences():
        write_tables(folder / SENTENCES_FILE, in_blocks(_sentence_rows(found), BATCH_ROWS), SENTENCES)
    if found.split_by_rule:
        write_split(folder / SPLIT_FILE, found.records)
    write_json(folder / DESCRIPTION_FILE, found.description)


def _image_rows(found: Survey, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of images.parquet."""
    for some, known in zip(found.records.batches(), found.facts.batches(), strict=True):
        table = some.table().append_column("sha256", texts_of(np.ascontiguousarray(known.digests)))
        for name in ("size", "width", "height"):
            table = table.append_column(name, pa.array(np.ascontiguousarray(known.rows[name])))
        yield table.select(schema.names).cast(schema)


def _sentence_rows(found: Survey) -> Iterator[pa.Table]:
    """Yield the rows of sentences.parquet."""
    for some, known in zip(found.records.batches(), found.facts.batches(), strict=True):
        rows = [
            (record.path, sha256, number, sentence)
            for record, sha256 in zip(some, known.texts(), strict=True)
            for number, sentence in enumerate(record.sentences)
        ]
        columns = zip(*rows, strict=True) if rows else ([] for _ in SENTENCES)
        yield pa.table([list(column) for column in columns], schema=SENTENCES)
