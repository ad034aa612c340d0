"""Questions about a path of a dataset, whether it is local or stands for an address: does it exist, what is in it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO

from data.errors import RejectedRow
from data.sources import remote, shards
from data.sources.address import is_remote, shown


def is_file(path: Path | str) -> bool:
    """Return True if `path` is a file, an object or a member of a tar shard; as text, it costs less for millions."""
    place = shards.place_of(path)
    if place is not None:
        try:
            return shards.size_of(place) is not None
        except RejectedRow:
            return False
    return remote.entry_of(path) is not None if is_remote(path) else Path(path).is_file()


def file_of(path: Path) -> Path:
    """Return the file or object that contains `path`: itself, or the tar shard of which it is a member."""
    place = shards.place_of(path)
    return path if place is None else Path(place.shard)


def is_dir(path: Path) -> bool:
    """Return True if `path` is a folder, or objects lie below it."""
    return remote.is_folder(path) if is_remote(path) else path.is_dir()


def exists(path: Path) -> bool:
    """Return True if `path` is a file or a folder."""
    return is_file(path) or is_dir(path) if is_remote(path) else path.exists()


def children(path: Path) -> Iterator[Path]:
    """Yield the files and folders in a folder, in any order."""
    return (path / name for name in remote.children(path)) if is_remote(path) else path.iterdir()


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading; an object is read whole. Raises OSError as `Path.open` does."""
    if not is_remote(path):
        return path.open("rb")
    try:
        return io.BytesIO(remote.read(path))
    except RejectedRow as error:
        kind = FileNotFoundError if error.reason == "missing" else PermissionError
        raise kind(2 if error.reason == "missing" else 13, error.reason, shown(path)) from error


def open_text(path: Path, *, encoding: str, errors: str = "strict", newline: str | None = None) -> TextIO:
    """Open a file as text. Raises OSError as `Path.open` does."""
    if not is_remote(path):
        return path.open(encoding=encoding, errors=errors, newline=newline)
    return io.TextIOWrapper(open_binary(path), encoding=encoding, errors=errors, newline=newline)


def table_source(path: Path) -> Path | IO[bytes]:
    """Return what pyarrow reads a table from: the path of a local file, the bytes of an object."""
    return open_binary(path) if is_remote(path) else path
