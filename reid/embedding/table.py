"""features.parquet: one row per image with its embedding, written in row groups so that it need not fit into memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.columns.digests import digests_of, joined
from data.columns.distinct import one_array
from data.errors import ConfigError, DataError
from data.files import atomic_path
from data.schemas import SCHEMA_VERSION
from reid.embedding.images import COLUMNS, ImageFiles, Keys, camera_numbers
from reid.embedding.journal import Float32s

GROUP_ROWS: Final = 8192
"""Rows per row group."""
_IDENTITY: Final = b"clip_scgi_features"
_ROOT: Final = b"clip_scgi_root"
_MODEL: Final = "model_fingerprint"
_EMBEDDING: Final = "embedding"
_UNIT: Final = 1e-3
_TEXTS: Final = ("path", "sha256", "split", "label", _MODEL)


class Heading(NamedTuple):
    """Metadata of a features file.

    identity: what an embedding depends on besides the image, as JSON: model (fingerprint), mode, comparable_with_texts,
    width, preprocessing. root: absolute folder that the paths are relative to.
    """

    identity: dict[str, Any]
    root: str


def features_schema(heading: Heading) -> pa.Schema:
    """Return the schema of features.parquet, with `heading` in its metadata."""
    return pa.schema(
        [
            *COLUMNS,
            (_MODEL, pa.string()),
            (_EMBEDDING, pa.list_(pa.float32(), heading.identity["width"])),  # of length one
        ],
        metadata={
            b"clip_scgi_schema": str(SCHEMA_VERSION).encode(),
            _IDENTITY: json.dumps(heading.identity, sort_keys=True).encode(),
            _ROOT: heading.root.encode(errors="replace"),
        },
    )


def read_heading(path: Path) -> Heading | None:
    """Return the metadata of the features file at `path`, or None if it does not exist.

    Raises ConfigError if another file is there, so that it is not overwritten.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return Heading(json.loads(metadata[_IDENTITY]), metadata[_ROOT].decode())
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ConfigError(f"{path} exists and is not a file of embeddings; give another file to write") from error


def read_images(path: Path) -> ImageFiles:
    """Return the images of a features file, without their embeddings.

    Raises DataError for a damaged file, and for one whose columns are not those of `features_schema`.
    """
    try:
        _check_columns(path, pq.read_schema(path))
        return ImageFiles.of_table(pq.read_table(path, columns=COLUMNS.names))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _damaged(path, error) from error


def has_images(path: Path, images: ImageFiles) -> bool:
    """Return True if the rows of a features file are `images`, in order. Raises DataError as `read_images` does."""
    start = 0
    for rows in _blocks(path, *COLUMNS.names):
        if not rows.equals(images[start : start + len(rows)].table()):
            return False
        start += len(rows)
    return start == len(images)


def _blocks(path: Path, *columns: str) -> Iterator[pa.Table]:
    """Yield columns of a features file, some thousand rows at a time. Raises DataError as `read_images` does.

    Other programs write whole numbers as floats and texts as large ones: the types are those of `features_schema`.
    """
    try:
        stored = pq.read_schema(path)
        _check_columns(path, stored)
        known = {field.name: field for field in (*COLUMNS, pa.field(_MODEL, pa.string()), stored.field(_EMBEDDING))}
        schema = pa.schema([known[name] for name in columns])
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(GROUP_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(list(columns)).replace_schema_metadata().cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _check_columns(path: Path, schema: pa.Schema) -> None:
    absent = [name for name in (*COLUMNS.names, _MODEL, _EMBEDDING) if name not in schema.names]
    if absent:
        raise DataError(
            f"{path} does not have the column(s) {', '.join(absent)}, which `clip-scgi embed` writes; delete it and "
            "embed the images again"
        )
    kind = schema.field(_EMBEDDING).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise DataError(
            f"{path}: the column {_EMBEDDING} is of the type {kind}; expected a fixed_size_list of float. Delete the "
            "file and embed the images again"
        )


class Faults(NamedTuple):
    """Rows of a features file that cannot be used as its metadata say, for N rows.

    foreign: the row is of another model. broken: its embedding is null, not finite or not of length one. models:
    fingerprint -> number of the foreign rows.
    """

    foreign: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    models: Mapping[str | None, int]

    @property
    def any(self) -> NDArray[np.bool_]:
        """The rows whose embeddings cannot be used, [N]."""
        return self.foreign | self.broken


def read_faults(path: Path, heading: Heading) -> Faults:
    """Return which rows of the features file at `path` cannot be used. Raises DataError as `read_images` does."""
    _check_width(path, heading)
    foreign, broken, models = [np.zeros(0, np.bool_)], [np.zeros(0, np.bool_)], Counter[str | None]()
    for rows in _blocks(path, _MODEL, _EMBEDDING):
        other = _foreign(rows, heading)
        for counts in pc.value_counts(rows[_MODEL].filter(pa.array(other))).to_pylist():
            models[counts["values"]] += counts["counts"]
        foreign.append(other)
        broken.append(_broken(_matrix(rows)))
    return Faults(np.concatenate(foreign), np.concatenate(broken), models)


class FeatureRows(NamedTuple):
    """Some rows of a features file. keys: of their images (`reid.embedding.images.Keys`). usable: see `Faults`."""

    keys: Keys
    vectors_ND: Float32s
    usable: NDArray[np.bool_]


def read_rows(path: Path, heading: Heading, *, by_camera: bool) -> Iterator[FeatureRows]:
    """Yield the rows of a features file in order, some thousand at a time. Raises DataError as `read_images` does.

    by_camera: the model has camera embeddings.
    """
    _check_width(path, heading)
    for rows in _blocks(path, "sha256", "camid", _MODEL, _EMBEDDING):
        try:
            keys = digests_of(rows["sha256"])
        except ValueError as error:
            raise _damaged(path, error) from error
        if by_camera:
            keys = joined(keys, camera_numbers(one_array(rows["camid"])))
        vectors_ND = _matrix(rows)
        yield FeatureRows(keys, vectors_ND, ~(_foreign(rows, heading) | _broken(vectors_ND)))


def read_embeddings(path: Path) -> Iterator[Float32s]:
    """Yield the embeddings of a features file in order, float32 [N, D] each time. Raises DataError if damaged."""
    return map(_matrix, _blocks(path, _EMBEDDING))


def _check_width(path: Path, heading: Heading) -> None:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error
    _check_columns(path, schema)
    width, said = schema.field(_EMBEDDING).type.list_size, heading.identity["width"]
    if width != said:
        raise DataError(
            f"{path} has embeddings of {width:,} values, but its metadata say {said:,}; delete it and embed the "
            "images again"
        )


def _foreign(rows: pa.Table, heading: Heading) -> NDArray[np.bool_]:
    """Return the mask of the rows of another model than the heading says."""
    differs = pc.not_equal(one_array(rows[_MODEL]), heading.identity["model"])
    found: NDArray[np.bool_] = differs.fill_null(True).to_numpy(zero_copy_only=False)
    return found


def _broken(vectors_ND: Float32s) -> NDArray[np.bool_]:
    """Return the mask of the embeddings that are not of length one; NaN is not."""
    return ~(np.abs(np.linalg.norm(vectors_ND, axis=1) - 1) <= _UNIT)


def _matrix(rows: pa.Table) -> Float32s:
    """Return the embeddings of some rows as float32 [N, D]; those that are null are NaN."""
    column = one_array(rows[_EMBEDDING])
    rows_ND = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values = column.flatten().to_numpy(zero_copy_only=False)  # without those of rows that are null
    rows_ND[np.asarray(column.is_valid())] = values.reshape(-1, rows_ND.shape[1])
    return rows_ND


def write_embeddings(path: Path, heading: Heading, blocks: Iterable[tuple[ImageFiles, Float32s]]) -> int:
    """Write features.parquet atomically and return its number of rows.

    blocks: images with their embeddings [N, D], a row group each; `GROUP_ROWS` of them, and fewer in the last one.
    """
    schema, count = features_schema(heading), 0
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=list(_TEXTS)) as writer,
    ):
        for images, vectors_ND in blocks:
            writer.write_table(_group(schema, images, vectors_ND, heading.identity["model"]), row_group_size=GROUP_ROWS)
            count += len(images)
    return count


def _group(schema: pa.Schema, images: ImageFiles, vectors_ND: Float32s, model: str) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), pa.float32())
    embedding = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    return pa.table([*images.table().columns, pa.repeat(model, len(images)), embedding], schema=schema)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({' '.join(str(error).split())}); delete it and run again")
