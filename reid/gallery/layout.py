"""Files of a gallery folder. A header names the current files; all others are leftovers of a killed writer.

Layout::

    gallery.json           the header: model, mode, and the current files; replaced atomically by each change
    parts/*.arrow          entries with their embeddings, Arrow IPC, never changed after they are written
    parts/*.npz            the index, if the gallery is large
    lock                   held by the process that writes
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from data.errors import ConfigError, DataError
from data.files import atomic_path, read_json, sync_folder, write_json
from reid.gallery.entry import EMBEDDING, Float32s, Int64s

HEADER: Final = "gallery.json"
PARTS: Final = "parts"
LOCK: Final = "lock"
FORMAT: Final = 1
"""Increased when an older version of this package could not read the files."""
BATCH_ROWS: Final = 65_536
"""Rows per record batch of a part: what one matrix product covers."""
_OWN: Final = (LOCK, PARTS)
_REQUIRED: Final = ("path", "sha256", EMBEDDING)


class Space(NamedTuple):
    """What makes embeddings comparable: model (fingerprint), mode (of `reid.Embedder`), width (values each)."""

    model: str
    mode: str
    width: int

    def __str__(self) -> str:
        """Return them as words for messages."""
        return f"model train/{self.model}, mode {self.mode}, {self.width:,} values each"


class Part(NamedTuple):
    """One file of entries. name: in `PARTS`. rows: number of entries."""

    name: str
    rows: int


class Lists(NamedTuple):
    """Content of an index file, for K lists of entries.

    centers_KD: float32, of length one. order: rows of the gallery, list by list. starts: of each list in it, [K + 1].
    """

    centers_KD: Float32s
    order: Int64s
    starts: Int64s


class IndexFile(NamedTuple):
    """The index of the first `rows` entries: how many of its `lists` a search reads, and the recall that this gave."""

    name: str
    rows: int
    lists: int
    probes: int
    recall: float

    def __str__(self) -> str:
        """Return it as words for messages."""
        return (
            f"recall@10 {self.recall:.4f}, measured; {self.rows:,} images in {self.lists:,} lists, of which a search "
            f"reads {self.probes:,}"
        )


@dataclass(frozen=True, kw_only=True)
class Header:
    """Content of gallery.json."""

    space: Space
    parts: tuple[Part, ...] = ()
    index: IndexFile | None = None

    @property
    def rows(self) -> int:
        """Number of entries."""
        return sum(part.rows for part in self.parts)

    @property
    def names(self) -> set[str]:
        """Names of the current files in `PARTS`."""
        return {part.name for part in self.parts} | ({self.index.name} if self.index else set())


def read_header(folder: Path) -> Header:
    """Return the header of the gallery in `folder`.

    Raises ConfigError if the folder is not a gallery or one of a newer version, DataError if the header is damaged.
    """
    try:
        content = read_json(folder / HEADER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder} is not a gallery ({HEADER} does not exist); make one with "
            f"`clip-scgi gallery add {folder} SOURCE`"
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError(
            f"{folder} is a gallery of format {version}, but this version of clip-scgi reads formats up to {FORMAT}; "
            "update clip-scgi"
        )
    try:
        return _header(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / HEADER} is damaged ({type(error).__name__}: {error}); remove {folder} and add its images again"
        ) from error


def _header(content: dict[str, Any]) -> Header:
    space = Space(**content["space"])
    if not isinstance(space.width, int) or space.width < 1:
        raise ValueError(f"width {space.width!r}")
    index = content.get("index")
    return Header(
        space=space,
        parts=tuple(Part(**part) for part in content["parts"]),
        index=IndexFile(**index) if index else None,
    )


def write_header(folder: Path, header: Header) -> None:
    """Write the header atomically; from now on its files are the gallery."""
    content = {
        "format": FORMAT,
        "space": header.space._asdict(),
        "parts": [part._asdict() for part in header.parts],
        "index": header.index._asdict() if header.index else None,
    }
    write_json(folder / HEADER, content)


def new_name(suffix: str) -> str:
    """Return a file name that was never used."""
    return f"{uuid.uuid4().hex}{suffix}"


def write_part(folder: Path, table: pa.Table) -> Part:
    """Write `table` as a new part of the gallery in `folder`; it is on disk when this returns."""
    name = new_name(".arrow")
    with atomic_path(folder / PARTS / name) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
    return Part(name, len(table))


def map_part(folder: Path, part: Part, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Return the record batches of a part, mapped into memory, with exactly the columns of `schema`.

    Columns that the part does not have, because an older version wrote it, are null. Raises FileNotFoundError if the
    part was removed meanwhile, DataError if it is damaged.
    """
    path = folder / PARTS / part.name
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            batches = [_shaped(reader.get_batch(number), schema) for number in range(reader.num_record_batches)]
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _damaged(folder, path, " ".join(str(error).split())) from error
    if sum(batch.num_rows for batch in batches) != part.rows:
        raise _damaged(folder, path, f"it does not have {part.rows} rows")
    return batches


def _shaped(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch with the columns of `schema`; Arrow raises if a column has another type."""
    return pa.RecordBatch.from_arrays([_column(batch, field) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        if field.name in _REQUIRED:
            raise KeyError(field.name)
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    return column if column.type == field.type else column.cast(field.type)


def _damaged(folder: Path, path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged ({why}); remove {folder} and add its images again")


def write_lists(folder: Path, lists: Lists) -> str:
    """Write an index file of the gallery in `folder`, and return its name."""
    name = new_name(".npz")
    with atomic_path(folder / PARTS / name) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **lists._asdict())
    return name


@lru_cache(maxsize=2)
def read_lists(path: Path) -> Lists:
    """Return the content of an index file. Raises FileNotFoundError if it was removed, DataError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return Lists(**{name: content[name] for name in Lists._fields})
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise _damaged(path.parent.parent, path, " ".join(str(error).split())) from error


def check_space(folder: Path, own: Space, space: Space) -> None:
    """Raise ConfigError unless the space of the gallery in `folder`, `own`, is `space`."""
    if own != space:
        raise ConfigError(
            f"the gallery {folder} has embeddings of {own}, but these are of {space}: they are not "
            "comparable. Add them to another gallery, or embed the images with the model and mode of this one"
        )


def check_new(folder: Path) -> None:
    """Raise ConfigError if a new gallery in `folder` would mix with other files."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a gallery; give another folder")
    others = [path.name for path in folder.iterdir()] if folder.exists() else []
    others = sorted(name for name in others if name not in _OWN and not _is_temporary(name))
    if others:
        raise ConfigError(
            f"{folder} is not a gallery, and contains other files, such as {others[0]}; give a new folder"
        )


def remove_leftovers(folder: Path, header: Header) -> None:
    """Remove all files of the gallery that the header does not name, so that nothing removed stays on the disk."""
    changed = False
    for path in _leftovers(folder, header.names):
        path.unlink(missing_ok=True)
        changed = True
    if changed:
        sync_folder(folder / PARTS)


def _leftovers(folder: Path, names: set[str]) -> Iterator[Path]:
    yield from (path for path in folder.iterdir() if _is_temporary(path.name))
    if (folder / PARTS).is_dir():
        yield from (path for path in (folder / PARTS).iterdir() if path.name not in names)


def _is_temporary(name: str) -> bool:
    return name.startswith(f".{HEADER}.") and name.endswith(".tmp")
