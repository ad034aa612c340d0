"""Distinct images embedded in parts by several workers.

A part has whole batches, as one process forms them, so its embeddings are those of one process to the bit. The folder
holds the list of images and one file per part; a killed run finds them again if it wants the same images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.columns.rejected import Rejected
from data.files import write_table
from data.images.decode import REASONS
from data.process.parts import Arrays, Parts, slices
from data.progress import ProgressFn
from reid.embedding.batches import EmbeddedBatch, embed_distinct
from reid.embedding.embedder import Embedder
from reid.embedding.table import ImageFile

_LIST: Final = "images.parquet"
_SCHEMA: Final = pa.schema([("paths", pa.list_(pa.string())), ("sha256", pa.string()), ("camid", pa.int64())])


class EmbeddingParts:
    """The parts in `folder`, whose list of images exists (`write_list`). batch: images per batch."""

    def __init__(self, folder: Path, batch: int) -> None:
        self._folder, self._batch = folder, batch
        rows = pq.read_metadata(folder / _LIST).num_rows
        self._slices = slices(rows, batch)
        self._parts = Parts(folder / str(batch), len(self._slices))

    @classmethod
    def write_list(cls, folder: Path, copies: Sequence[Sequence[ImageFile]], batch: int) -> EmbeddingParts:
        """Write the list of distinct images, each with all of its files, and return the parts."""
        columns = {
            "paths": [[image.path for image in same] for same in copies],
            "sha256": [same[0].sha256 for same in copies],
            "camid": [same[0].camid for same in copies],
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / _LIST, pa.table(columns, schema=_SCHEMA), _SCHEMA)
        return cls(folder, batch)

    def missing(self) -> list[int]:
        """Return the numbers of the parts that do not exist yet."""
        return self._parts.missing()

    def work(self, embedder: Embedder, root: Path, mode: str, progress: ProgressFn) -> int:
        """Embed the parts that no other worker embeds, until all exist; return the number of images done here."""
        done = 0

        def compute(number: int) -> Arrays:
            nonlocal done
            found = _embed(embedder, self._images[self._slices[number]], root, mode)
            done += len(found["reasons"])
            return found

        def report(parts: int, all_parts: int, note: str) -> None:
            total = self._slices[-1].stop
            progress(total * parts // all_parts, total, note)

        self._parts.work(compute, report)
        return done

    def read(self, copies: Sequence[Sequence[ImageFile]]) -> Iterator[EmbeddedBatch]:
        """Yield the embeddings of the listed images, which `copies` are; every part must exist."""
        for number, rows in enumerate(self._slices):
            part = self._parts.read(number)
            firsts = [(same[0], str(reason)) for same, reason in zip(copies[rows], part["reasons"], strict=True)]
            usable = [image for image, reason in firsts if not reason]
            refused = [(image, Rejected(image.path, why, REASONS[why])) for image, why in firsts if why]
            yield EmbeddedBatch(usable, part["vectors_ND"], refused)

    def remove(self) -> None:
        """Delete the list and all parts."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @cached_property
    def _images(self) -> list[list[ImageFile]]:
        table = pq.read_table(self._folder / _LIST)
        rows = zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True)
        return [[ImageFile(path, sha256, camid=camid) for path in paths] for paths, sha256, camid in rows]


def _embed(embedder: Embedder, copies: Sequence[Sequence[ImageFile]], root: Path, mode: str) -> Arrays:
    """Return the embeddings of some images, and per image the reason why it has none or ""."""
    vectors, reasons = [], dict[str, str]()
    with closing(embed_distinct(embedder, copies, root=root, mode=mode)) as batches:
        for batch in batches:
            reasons |= {image.path: rejected.reason for image, rejected in batch.rejected}
            vectors += [batch.vectors_ND] if batch.images else []
    empty = np.empty((0, embedder.width(mode)), np.float32)
    return {
        "vectors_ND": np.concatenate(vectors) if vectors else empty,
        "reasons": np.array([reasons.get(same[0].path, "") for same in copies], np.str_),
    }
