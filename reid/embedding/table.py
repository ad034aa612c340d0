"""features.parquet: one row per image with its embedding, written in row groups so that it need not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import ConfigError, DataError
from data.files import atomic_path
from data.schemas import SCHEMA_VERSION
from reid.embedding.journal import Float32s, Journal

GROUP_ROWS: Final = 8192
"""Rows per row group."""
_IDENTITY: Final = b"clip_scgi_features"
_ROOT: Final = b"clip_scgi_root"
_MODEL: Final = "model_fingerprint"
_EMBEDDING: Final = "embedding"
_UNIT: Final = 1e-3
_TEXTS: Final = ("path", "sha256", "split", "label", _MODEL)


class ImageFile(NamedTuple):
    """One image of a features file. path: relative to the root, posix. What is unknown of it is None."""

    path: str
    sha256: str
    split: str | None = None
    pid: int | None = None
    camid: int | None = None
    label: str | None = None

    def key(self, *, by_camera: bool) -> str:
        """Return what the embedding depends on: the bytes of the file and, with camera embeddings, the camera."""
        return f"{self.sha256}:{self.camid}" if by_camera else self.sha256


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
            ("path", pa.string()),  # relative to the root, posix separators
            ("sha256", pa.string()),  # of the file's bytes
            ("split", pa.string()),  # null if the images have no split
            ("pid", pa.int64()),  # identity; null if unknown
            ("camid", pa.int64()),  # camera; null if unknown
            ("label", pa.string()),  # the text that pid numbers; null if the dataset numbers its identities itself
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


def read_images(path: Path) -> list[ImageFile]:
    """Return the images of a features file, without their embeddings.

    Raises DataError for a damaged file, and for one whose columns are not those of `features_schema`.
    """
    try:
        _check_columns(path, pq.read_schema(path))
        table = pq.read_table(path, columns=list(ImageFile._fields))
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error
    return [ImageFile(*row) for row in zip(*(table[name].to_pylist() for name in ImageFile._fields), strict=True)]


def _check_columns(path: Path, schema: pa.Schema) -> None:
    absent = [name for name in (*ImageFile._fields, _MODEL, _EMBEDDING) if name not in schema.names]
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

    foreign: the row is of another model. broken: its embedding is null, not finite or not of length one. models: the
    fingerprint of each row.
    """

    foreign: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    models: list[str | None]

    @property
    def any(self) -> NDArray[np.bool_]:
        """The rows whose embeddings cannot be used, [N]."""
        return self.foreign | self.broken


def read_faults(path: Path, heading: Heading) -> Faults:
    """Return which rows of the features file at `path` cannot be used. Raises DataError as `read_images` does."""
    try:
        schema = pq.read_schema(path)
        _check_columns(path, schema)
        width, said = schema.field(_EMBEDDING).type.list_size, heading.identity["width"]
        if width != said:
            raise DataError(
                f"{path} has embeddings of {width:,} values, but its metadata say {said:,}; delete it and embed the "
                "images again"
            )
        models = pq.read_table(path, columns=[_MODEL])[_MODEL].to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error
    foreign = np.array([model != heading.identity["model"] for model in models], np.bool_)
    broken = [~(np.abs(np.linalg.norm(rows_ND, axis=1) - 1) <= _UNIT) for rows_ND in read_embeddings(path)]  # also NaN
    return Faults(foreign, np.concatenate([np.zeros(0, np.bool_), *broken]), models)


def read_embeddings(path: Path) -> Iterator[Float32s]:
    """Yield the embeddings of a features file in order, float32 [rows of a group, D]. Raises DataError if damaged."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=[_EMBEDDING])[_EMBEDDING].combine_chunks()
                yield _matrix(column)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from error


def _matrix(column: pa.FixedSizeListArray) -> Float32s:
    """Return a column of embeddings as float32 [N, D]; rows that are null are NaN."""
    rows_ND = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values = column.flatten().to_numpy(zero_copy_only=False)  # without those of rows that are null
    rows_ND[np.asarray(column.is_valid())] = values.reshape(-1, rows_ND.shape[1])
    return rows_ND


def write_features(
    path: Path, heading: Heading, images: Sequence[ImageFile], keys: Sequence[str], journal: Journal
) -> None:
    """Write features.parquet atomically: one row per image, with the embedding that `journal` has for its key."""
    write_embeddings(path, heading, images, lambda rows: journal.read(keys[rows]))


def write_embeddings(
    path: Path, heading: Heading, images: Sequence[ImageFile], read: Callable[[slice], Float32s]
) -> None:
    """Write features.parquet atomically, a row group at a time. read: returns the embeddings of some of the images."""
    schema = features_schema(heading)
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=list(_TEXTS)) as writer,
    ):
        for start in range(0, len(images), GROUP_ROWS):
            rows = slice(start, start + GROUP_ROWS)
            group = _group(schema, images[rows], read(rows), heading.identity["model"])
            writer.write_table(group, row_group_size=GROUP_ROWS)


def _group(schema: pa.Schema, rows: Sequence[ImageFile], vectors_ND: Float32s, model: str) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in ImageFile._fields}
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1), pa.float32())
    embedding = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    return pa.table({**columns, _MODEL: [model] * len(rows), _EMBEDDING: embedding}, schema=schema)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({' '.join(str(error).split())}); delete it and run again")
