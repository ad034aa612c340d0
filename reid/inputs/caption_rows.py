"""The captions of selected images, read from captions.parquet in batches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts.contents import caption_texts
from data.columns.digests import texts_of
from data.columns.distinct import one_array
from data.columns.source import ParquetRows
from data.columns.texts import Texts
from reid.inputs.image_rows import ImageRows, Ints

_COLUMNS = ("image_path", "image_sha256", "caption")


class FoundCaptions(NamedTuple):
    """The caption of each selected image, [N], empty without one; and the images that captions.parquet lacks."""

    texts: Texts
    unknown: Ints


def captions_of_rows(file: Path, rows: Ints, everything: ImageRows) -> FoundCaptions:
    """Return the captions of some images of the dataset. rows: their places in `everything`, ascending, [N].

    An image is known by its path and its content.
    """
    source = ParquetRows(file)
    found = _in_order(source, rows, everything) if source.n_rows == len(everything) else None
    return _by_image(source, everything.take(rows)) if found is None else found


def _in_order(source: ParquetRows, rows: Ints, everything: ImageRows) -> FoundCaptions | None:
    """Return the captions if the file lists the images of the dataset in their order, as it should; else None."""
    at, texts = 0, []
    for batch in source.batches(*_COLUMNS):
        part = everything.take(slice(at, at + len(batch)))
        if Texts(batch["image_path"]) != part.path or Texts(batch["image_sha256"]) != Texts(texts_of(part.sha256)):
            return None
        first, last = np.searchsorted(rows, [at, at + len(batch)])
        texts.append(_texts(batch.take(pa.array(rows[first:last] - at))))
        at += len(batch)
    return FoundCaptions(Texts.joined(texts), np.empty(0, dtype=np.int64))


def _by_image(source: ParquetRows, rows: ImageRows) -> FoundCaptions:
    """Return the captions by path and content, from a file with other images or in another order."""
    table = pa.concat_tables(source.batches(*_COLUMNS))
    known = _keys(Texts(table["image_path"]), Texts(table["image_sha256"]))
    at = _keys(rows.path, Texts(texts_of(rows.sha256))).places_in(known)
    texts = Texts(pa.concat_arrays([one_array(_texts(table)), pa.array([""])]))
    return FoundCaptions(texts[at % len(texts)], np.flatnonzero(at < 0))


def _keys(paths: Texts, digests: Texts) -> Texts:
    return Texts(pc.binary_join_element_wise(paths.array, digests.array, pa.scalar("\0", pa.large_string())))


def _texts(captions: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([caption_texts(one_array(captions["caption"]))])
