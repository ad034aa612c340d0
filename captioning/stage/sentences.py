"""captions.parquet from the sentences that come with a dataset, without a captioning model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.columns.digests import Digests
from data.columns.json_rows import RowDigest
from data.errors import DataError
from data.schemas import SENTENCES, SHARD
from data.stages.images import IndexedImages


def sentences_of(images: IndexedImages, number: int) -> pa.Table:
    """Return the sentences of that number (schemas.SENTENCES), without images that have fewer sentences."""
    table = images.sentences()
    return SENTENCES.empty_table() if table is None else table.filter(pc.equal(table["number"], number))


def sentences_digest(images: IndexedImages, number: int) -> str:
    """Return the digest of the sentences of that number, so that captions do not depend on the others."""
    found = RowDigest()
    found.update(sentences_of(images, number).select(["image_path", "sentence"]))
    return found.hexdigest()


class DatasetSentences:
    """One sentence per image of a dataset, as replies (`captioning.stage.view.Replies`)."""

    def __init__(self, images: IndexedImages, number: int) -> None:
        """number: which sentence of each image. Raises DataError if no image has it."""
        self._paths = images.rows("path")["path"]
        self._rows = sentences_of(images, number)
        if not len(self):
            raise DataError(
                f"caption.engine=dataset: no image of {images.description.name} has a sentence number {number}."
                " Use a dataset with sentences and caption.sentence=0, or set caption.engine=transformers"
            )

    def __len__(self) -> int:
        """Return the number of images with the sentence."""
        return int(self._rows.num_rows)

    def refresh(self) -> None:
        """Do nothing: the sentences of an index do not change."""

    def read(self, images: Digests) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Yield the places of the images that have the sentence, and their rows. images: all of the index, in order."""
        rows, count = self._rows, len(self)
        given = {
            "image_sha256": rows["image_sha256"],
            "raw_text": rows["sentence"],
            "status": pa.repeat("ok", count),
            "truncated": pa.repeat(False, count),
        }
        columns = [given[field.name] if field.name in given else pa.nulls(count, field.type) for field in SHARD]
        places = pc.index_in(rows["image_path"], value_set=self._paths)
        yield places.to_numpy().astype(np.int64), pa.table(columns, schema=SHARD)
