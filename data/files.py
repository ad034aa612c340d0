"""Atomic writes, JSON and Parquet files, and paths that cannot leave their root."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ClipScgiError, DataError, RejectedRow
from data.sources.address import is_remote

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Readers see the old file or the new one, never a part of it. On an exception, the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync_file(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush the file at `path` to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Flush the entries of the folder at `path`, so that a rename in it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raise DataError, naming the file, if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write `table` as Parquet with exactly `schema`, atomically; equal rows give equal bytes."""
    with atomic_path(path) as temporary:
        pq.write_table(table.select(schema.names).cast(schema), temporary, compression="zstd")


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write `tables` as one Parquet file with exactly `schema`, atomically, each as a row group.

    One table gives the bytes that `write_table` gives.
    """
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        rest = iter(tables)
        while (table := next(rest, None)) is not None:
            writer.write_table(table.select(schema.names).cast(schema))
            del table  # before the next one is made


def inside(root: Path, relative: str) -> Path:
    """Return the path `relative` under `root`.

    Raises RejectedRow: ``outside_root`` if the path is absolute, contains `..` or follows a link that leaves the root,
    ``missing`` if its links form a cycle.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative:
        raise RejectedRow("outside_root")
    path = root / pure
    if is_remote(root):  # stores do not have links
        return path
    try:
        is_inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise RejectedRow("missing") from error
    if not is_inside:
        raise RejectedRow("outside_root")
    return path


@contextmanager
def full_disk_explained(folder: Path, what: str) -> Iterator[None]:
    """Turn "no space left" into a ClipScgiError that names the `folder`, `what` failed, and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ClipScgiError(
            f"the disk of {folder} is full: {what}. Free some space (`clip-scgi artifacts gc` removes artifacts that"
            " no recent run needs) and run again; completed work is kept"
        ) from error
