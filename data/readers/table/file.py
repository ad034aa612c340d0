"""Rows of a manifest as stored: CSV in any common encoding and separator, Parquet, or a folder of Parquet files.

Used by `data.readers.manifest`. Problems of the whole file are DataErrors that name the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError
from data.readers.base import is_litter
from data.readers.table.coded import NamedCell, RowBatch
from data.readers.table.columns import ALWAYS, COLUMNS, REQUIRED, folded, positions
from data.readers.table.delimited import BATCH_ROWS, csv_batches, csv_column
from data.sources.places import is_dir, table_source

_PARQUET: Final = (".parquet", ".pq")
# Column -> what it may have besides text, in a message; integers in the other columns.
_OTHER_KINDS: Final = {"path": "", "split": "", "sentences": " or as lists of text"}
_KINDS: Final = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
)
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


def manifest_batches(file: Path, *, needs_split: bool = True) -> Iterator[RowBatch]:
    """Yield the rows of a CSV file, a Parquet file or a folder of Parquet files, in their order.

    Column names may be in any case and have blanks around them. Only path, split and pid (or label) are required;
    split only if `needs_split` is set.
    """
    needed = tuple(name for name in REQUIRED if needs_split or name != "split")
    try:
        if is_dir(file):
            yield from _folder(file, needed)
        elif file.suffix.lower() in _PARQUET:
            yield from _parquet(file, {}, "", needed)
        else:
            yield from csv_batches(file, needed)
    except pa.ArrowException as error:
        raise _unreadable(file, error) from error
    except OSError as error:
        if error.errno is None:  # Arrow's, on the content
            raise _unreadable(file, error) from error
        raise DataError(f"{file} cannot be read: {error}. Check its permissions") from error


def manifest_column(file: Path, name: str) -> tuple[list[str], list[NamedCell]]:
    """Return the names of the columns, and, of each row, the path and the cell in the column `name`, if that exists.

    The manifest is one that `manifest_batches` reads; the cell is as stored, of any type.
    """
    if is_dir(file):
        parts = sorted(path for path in file.rglob("*") if path.suffix.lower() in _PARQUET and not is_litter(path.name))
    else:
        parts = [file]
    names, cells = dict[str, None](), list[NamedCell]()
    for part in parts:
        read = _parquet_column if part.suffix.lower() in _PARQUET else csv_column
        found, more = read(part, name)
        names |= dict.fromkeys(found)
        cells += more
    return list(names), cells


def _parquet_column(file: Path, name: str) -> tuple[list[str], list[NamedCell]]:
    with pq.ParquetFile(table_source(file)) as table:
        stored = table.schema_arrow.names
        at = {folded(column): column for column in stored}
        if folded(name) not in at:
            return stored, []
        columns = table.read(columns=[at["path"], at[folded(name)]])
    pairs = zip(columns[at["path"]].to_pylist(), columns[at[folded(name)]].to_pylist(), strict=True)
    return stored, [NamedCell(f"row {number}", *pair) for number, pair in enumerate(pairs, start=1)]


def _unreadable(file: Path, error: Exception) -> DataError:
    problem = str(error).strip().rstrip(".")
    return DataError(f"{file} cannot be read as a manifest: {problem}. Write it again, unencrypted, as Parquet or CSV")


def _folder(folder: Path, needed: Sequence[str]) -> Iterator[RowBatch]:
    """Yield the rows of all Parquet files below `folder`, sorted by path; key=value folders are columns."""
    parts = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in _PARQUET]
    parts = sorted(part for part in parts if not any(is_litter(name) for name in part.parts))
    if not parts:
        raise DataError(f"the folder {folder} does not contain Parquet files; set data.manifest to a folder or file")
    for part in parts:
        yield from _parquet(folder / part, _partition(part), f" of {part}", needed)


def _partition(part: Path) -> dict[str, str | None]:
    """Return the columns that the folders of a partitioned dataset stand for, as in split=train/part-0.parquet."""
    pairs = [name.split("=", 1) for name in part.parts[:-1] if "=" in name]
    return {key.strip().casefold(): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def _parquet(file: Path, partition: Mapping[str, str | None], of: str, required: Sequence[str]) -> Iterator[RowBatch]:
    with pq.ParquetFile(table_source(file)) as table:
        stored = table.schema_arrow.names
        known = {folded(name) for name in stored}
        outer = {name: value for name, value in partition.items() if name in COLUMNS and name not in known}
        where = positions(file, [*stored, *outer], required)
        names = {column: stored[at] for column, at in where.items() if at < len(stored)}
        _check_types(file, [table.schema_arrow.field(at) for at in where.values() if at < len(stored)])
        first = 1
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=list(names.values())):
            columns = {column: _plain(file, batch[name]) for column, name in names.items()}
            columns |= {name: pa.repeat(pa.scalar(cell, pa.string()), len(batch)) for name, cell in outer.items()}
            columns = dict.fromkeys(ALWAYS, pa.nulls(len(batch))) | columns
            yield RowBatch(first, of, columns)
            first += len(batch)


def _plain(file: Path, column: pa.Array) -> pa.Array:
    """Return a column without dictionary, whose text is valid; raise DataError if it is not."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{file} has text that is not UTF-8: write it again as Parquet or CSV with UTF-8 text"
        ) from error
    return column


def _check_types(file: Path, fields: Iterable[pa.Field]) -> None:
    """Raise DataError if a column is neither text nor a number, or a dictionary of these."""
    for field in fields:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if folded(field.name) == "sentences" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        if not any(is_kind(kind) for is_kind in _KINDS):
            raise DataError(
                f"{file}: the column {field.name} has the type {field.type}; write it as text"
                f"{_OTHER_KINDS.get(folded(field.name), ' or as integers')}"
            )
