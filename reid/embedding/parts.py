"""Distinct images embedded in parts by several workers.

A part has whole batches, as one process forms them, so its embeddings are those of one process to the bit. The folder
holds the list of images (a row group per part) and one file per part; a killed run finds them again if it wants the
same images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.columns.digests import texts_of
from data.files import write_tables
from data.process.parts import Arrays, Parts, slices
from data.progress import ProgressFn
from reid.embedding.batches import EmbeddedBatch, embed_distinct
from reid.embedding.embedder import Embedder
from reid.embedding.images import DistinctImages, ImageFile

_SCHEMA: Final = pa.schema([("paths", pa.list_(pa.string())), ("sha256", pa.string()), ("camid", pa.int64())])


class EmbeddingParts:
    """The parts in `folder`, whose list of images exists (`write_list`). batch: images per batch."""

    def __init__(self, folder: Path, batch: int) -> None:
        self._folder = folder
        self._list = _list_in(folder, batch)
        rows = pq.read_metadata(self._list).num_rows
        self._slices = slices(rows, batch)
        self._parts = Parts(folder / str(batch), len(self._slices))

    @classmethod
    def write_list(cls, folder: Path, images: DistinctImages, batch: int) -> EmbeddingParts:
        """Write the list of distinct images, each with all of its files, and return the parts."""
        parts = (_listed(images[rows]) for rows in slices(len(images), batch))
        write_tables(_list_in(folder, batch), parts, _SCHEMA)
        return cls(folder, batch)

    def missing(self) -> list[int]:
        """Return the numbers of the parts that do not exist yet."""
        return self._parts.missing()

    def work(self, embedder: Embedder, root: Path, mode: str, progress: ProgressFn) -> int:
        """Embed the parts that no other worker embeds, until all exist; return the number of images done here."""
        done = 0

        def compute(number: int) -> Arrays:
            nonlocal done
            found = _embed(embedder, self._images(number), root, mode)
            done += len(found["reasons"])
            return found

        def report(parts: int, all_parts: int, note: str) -> None:
            total = self._slices[-1].stop
            progress(total * parts // all_parts, total, note)

        self._parts.work(compute, report)
        return done

    def read(self) -> Iterator[EmbeddedBatch]:
        """Yield the embeddings of the listed images, in order; every part must exist."""
        for number in range(len(self._slices)):
            part = self._parts.read(number)
            yield EmbeddedBatch(part["vectors_ND"], part["reasons"])

    def remove(self) -> None:
        """Delete the list and all parts."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _images(self, number: int) -> list[list[ImageFile]]:
        """Return the images of a part, each with all of its files."""
        with pq.ParquetFile(self._list) as file:
            table = file.read_row_group(number)
        rows = zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True)
        return [[ImageFile(path, sha256, camid=camid) for path in paths] for paths, sha256, camid in rows]


def _list_in(folder: Path, batch: int) -> Path:
    """Return the list of images whose row groups are parts of batches of `batch` images."""
    return folder / f"images-{batch}.parquet"


def _listed(images: DistinctImages) -> pa.Table:
    """Return the rows of some images in the list."""
    files, firsts = images.files, images.firsts()
    offsets = np.append(0, np.cumsum(images.counts())).astype(np.int32)
    paths = files.paths[images.places()].array.cast(pa.string())
    columns = {
        "paths": pa.ListArray.from_arrays(pa.array(offsets), paths),
        "sha256": texts_of(files.sha256[firsts]),
        "camid": files.camids.take(pa.array(firsts)),
    }
    return pa.table(columns)


def _embed(embedder: Embedder, copies: list[list[ImageFile]], root: Path, mode: str) -> Arrays:
    """Return the embeddings of some images, and per image the reason why it has none or ""."""
    vectors, reasons = [np.empty((0, embedder.width(mode)), np.float32)], [np.empty(0, np.str_)]
    with closing(embed_distinct(embedder, copies, root=root, mode=mode)) as batches:
        for batch in batches:
            vectors += [batch.vectors_ND] if len(batch.vectors_ND) else []
            reasons.append(batch.reasons)
    return {"vectors_ND": np.concatenate(vectors), "reasons": np.concatenate(reasons)}
