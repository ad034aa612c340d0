"""Rows of a manifest as stored: CSV in any common encoding and separator, Parquet, or a folder of Parquet files.

Used by `data.readers.manifest`. Problems of the whole file are DataErrors that name the remedy.
"""

from __future__ import annotations

import codecs
import csv
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.columns.codes import CellCodes, Code
from data.errors import DataError
from data.readers.base import is_litter
from data.settings import nearest
from data.sources.places import is_dir, open_binary, open_text, table_source

REQUIRED: Final = ("path", "split", "pid")
COLUMNS: Final = (*REQUIRED, "camid", "label", "sentences")
CODED: Final = ("split", "pid", "camid", "label")
"""Columns of which `CodedRows` holds the distinct cells."""
_ALWAYS: Final = ("path", *CODED)
_PARQUET: Final = (".parquet", ".pq")
_BATCH_ROWS: Final = 16_384
_DELIMITERS: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
# The mark of UTF-32 begins with that of UTF-16.
_BOMS: Final = {
    **{codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"},
    **{codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"},
}
_ZIP: Final = b"PK\x03\x04"  # a spreadsheet (.xlsx, .ods)
# Column -> what it may have besides text, in a message; integers in the other columns.
_OTHER_KINDS: Final = {"path": "", "split": "", "sentences": " or as lists of text"}
_KINDS: Final = (
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
)
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_SIMILAR: Final = 0.6  # least similarity of a column name to be suggested
# Other names of the columns, for suggestions.
_ALIASES: Final = {
    "path": ("image", "file", "filename", "img", "image_path", "file_name", "name"),
    "split": ("set", "subset", "partition", "fold", "part"),
    "pid": ("person", "person_id", "id", "identity", "name", "subject", "personid"),
}


Cell = str | int | float | Decimal | None


class Row(NamedTuple):
    """One row. place: where it is, for messages. The others are cells as stored; None if absent."""

    place: str
    path: Cell
    split: Cell
    pid: Cell
    camid: Cell
    label: Cell
    sentences: Any


class RowBatch(NamedTuple):
    """Some rows as columns. first: number of the first row. of: where they are, for messages; empty in a single file.

    columns: name -> cells as stored, for each of `COLUMNS`; a manifest may lack sentences.
    """

    first: int
    of: str
    columns: Mapping[str, pa.Array]


class Place(NamedTuple):
    """Where a batch begins: the number of rows before it, its first row in its file, and `RowBatch.of`."""

    start: int
    first: int
    of: str


class PathCells(NamedTuple):
    """The cells of a batch that are not coded. start: rows before it. sentences: None if there are none."""

    start: int
    paths: pa.Array
    sentences: pa.Array | None


@dataclass(kw_only=True)
class CodedRows:
    """All rows of a manifest, [N], as columns. codes: place of each cell of a column among its distinct `cells`.

    batches: the other columns, which `parts` hands out.
    """

    codes: Mapping[str, Code]
    cells: Mapping[str, Sequence[Any]]
    places: Sequence[Place]
    batches: list[PathCells]

    @classmethod
    def of(cls, batches: Iterable[RowBatch]) -> CodedRows:
        """Return the rows of all batches."""
        coders = {name: CellCodes() for name in CODED}
        codes: dict[str, list[Code]] = {name: [] for name in CODED}
        places, cells, start = list[Place](), list[PathCells](), 0
        for batch in batches:
            for name, coder in coders.items():
                codes[name].append(coder.encode(batch.columns[name]))
            places.append(Place(start, batch.first, batch.of))
            cells.append(PathCells(start, batch.columns["path"], batch.columns.get("sentences")))
            start += len(batch.columns["path"])
        return cls(
            codes={name: np.concatenate([np.empty(0, np.int32), *codes.pop(name)]) for name in CODED},
            cells={name: coder.values for name, coder in coders.items()},
            places=places,
            batches=cells,
        )

    def batch_of(self, row: int) -> int:
        """Return the number of the batch of a row."""
        return bisect_right(self.places, row, key=lambda place: place.start) - 1

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        start, first, of = self.places[self.batch_of(row)]
        return f"row {first + row - start}{of}"

    def parts(self) -> Iterator[PathCells]:
        """Yield the cells of each batch once, and forget them."""
        self.batches.reverse()
        while self.batches:
            yield self.batches.pop()


class NamedCell(NamedTuple):
    """One cell of a column that the caller names. place: its row, for messages. cell: as stored."""

    place: str
    path: Cell
    cell: Any


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
            yield from _csv(file, needed)
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
        read = _parquet_column if part.suffix.lower() in _PARQUET else _csv_column
        found, more = read(part, name)
        names |= dict.fromkeys(found)
        cells += more
    return list(names), cells


def _parquet_column(file: Path, name: str) -> tuple[list[str], list[NamedCell]]:
    with pq.ParquetFile(table_source(file)) as table:
        stored = table.schema_arrow.names
        at = {_folded(column): column for column in stored}
        if _folded(name) not in at:
            return stored, []
        columns = table.read(columns=[at["path"], at[_folded(name)]])
    pairs = zip(columns[at["path"]].to_pylist(), columns[at[_folded(name)]].to_pylist(), strict=True)
    return stored, [NamedCell(f"row {number}", *pair) for number, pair in enumerate(pairs, start=1)]


def _csv_column(file: Path, name: str) -> tuple[list[str], list[NamedCell]]:
    with open_text(file, encoding=encoding_of(file), newline="") as stream:
        delimiter, header = _header(file, stream.readline())
        at = {_folded(column): place for place, column in enumerate(header)}
        if _folded(name) not in at:
            return header, []
        path, cell = at["path"], at[_folded(name)]
        lines = enumerate(_lines(file, stream, delimiter, len(header)), start=1)
        return header, [NamedCell(f"row {number}", cells[path], cells[cell]) for number, cells in lines]


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
        folded = {_folded(name) for name in stored}
        outer = {name: value for name, value in partition.items() if name in COLUMNS and name not in folded}
        where = _positions(file, [*stored, *outer], required)
        names = {column: stored[at] for column, at in where.items() if at < len(stored)}
        _check_types(file, [table.schema_arrow.field(at) for at in where.values() if at < len(stored)])
        first = 1
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=list(names.values())):
            columns = {column: _plain(file, batch[name]) for column, name in names.items()}
            columns |= {name: pa.repeat(pa.scalar(cell, pa.string()), len(batch)) for name, cell in outer.items()}
            columns = dict.fromkeys(_ALWAYS, pa.nulls(len(batch))) | columns
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
        if _folded(field.name) == "sentences" and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            kind = kind.value_type
        if not any(is_kind(kind) for is_kind in _KINDS):
            raise DataError(
                f"{file}: the column {field.name} has the type {field.type}; write it as text"
                f"{_OTHER_KINDS.get(_folded(field.name), ' or as integers')}"
            )


def _csv(file: Path, required: Sequence[str]) -> Iterator[RowBatch]:
    encoding = encoding_of(file)
    try:
        with open_text(file, encoding=encoding, newline="") as stream:
            delimiter, header = _header(file, stream.readline())
            where, first = _positions(file, header, required), 1
            lines = _lines(file, stream, delimiter, len(header))
            while rows := list(islice(lines, _BATCH_ROWS)):
                columns = {name: pa.array([cells[at] for cells in rows], pa.string()) for name, at in where.items()}
                columns = dict.fromkeys(_ALWAYS, pa.repeat("", len(rows))) | columns
                yield RowBatch(first, "", columns)
                first += len(rows)
    except UnicodeError as error:
        wide = encoding in ("utf-16", "utf-32")
        problem = f"{encoding.upper()} text" if wide else f"UTF-8 text{bad_line(file)}"
        raise DataError(f"{file} is not {problem}; save it as UTF-8") from error


def _lines(file: Path, stream: TextIO, delimiter: str, width: int) -> Iterator[list[str]]:
    """Yield the cells of each line after the header, without empty lines."""
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells and len(cells) != width:
                raise DataError(
                    f"{file} cannot be read as a manifest: line {reader.line_num + 1} has {len(cells)} values, but the"
                    f" first line {width}. Put values that contain {_DELIMITERS[delimiter]} between double quotes"
                )
            if cells:
                yield cells
    except csv.Error as error:
        raise _malformed(file, reader.line_num + 1, error) from error


def _malformed(file: Path, line: int, error: csv.Error) -> DataError:
    return DataError(
        f"{file} cannot be read as a manifest: line {line}: {error}. Put values that contain double quotes between"
        f" double quotes, and write each of theirs twice; no value may have more than {csv.field_size_limit():,}"
        " characters"
    )


def _header(file: Path, line: str) -> tuple[str, list[str]]:
    """Return the delimiter and the column names in the first line."""
    try:
        delimiter = delimiter_of(line)
        return delimiter, next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        raise _malformed(file, 1, error) from error


def encoding_of(file: Path) -> str:
    """Return the encoding that the first bytes announce; UTF-8 by default."""
    with open_binary(file) as stream:
        head = stream.read(1024)
    found = next((encoding for bom, encoding in _BOMS.items() if head.startswith(bom)), "utf-8")
    if head.startswith(_ZIP):
        raise DataError(f"{file} is a spreadsheet or an archive; save it as CSV UTF-8")
    if found == "utf-8" and b"\0" in head.split(b"\n", 1)[0]:
        raise DataError(f"{file} is UTF-16 text without a byte order mark, or not text; save it as UTF-8")
    return found


def delimiter_of(header: str, columns: Iterable[str] = COLUMNS) -> str:
    """Return the delimiter that gives the most names of `columns`; a comma if none of them gives any."""
    names = {*columns}

    def known(delimiter: str) -> int:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        return len({_folded(cell) for cell in cells} & names)

    return max(_DELIMITERS, key=known)


def bad_line(file: Path) -> str:
    """Return the place of the first line that is not UTF-8, for a message; "" if there is none."""
    with open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f": line {number} contains the byte 0x{line[error.start]:02x}"
    return ""


def _folded(name: str) -> str:
    return name.strip().casefold()


def _positions(file: Path, names: Sequence[str], required: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column among `names`; raise DataError if they do not make a manifest."""
    folded = [_folded(name) for name in names]
    twice = [column for column in COLUMNS if folded.count(column) > 1]
    if twice:
        shown = "; ".join(f"{column} ({_shown(n for n in names if _folded(n) == column)})" for column in twice)
        raise DataError(f"{file} has more than one column {shown}; rename or remove all but one")
    needed = [column for column in required if column != "pid" or "label" not in folded]
    absent = [column for column in needed if column not in folded]
    if absent:
        raise DataError(
            f"{file} lacks the column(s) {', '.join(absent)}{_suggestions(absent, names)}. A manifest needs"
            f" {', '.join(required)} and may have camid, label and sentences (others are ignored). Found:"
            f" {_shown(names)}. Put the names in the first line, separated by commas, semicolons or tabs"
        )
    return {column: folded.index(column) for column in COLUMNS if column in folded}


def _shown(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _suggestions(absent: Sequence[str], names: Sequence[str]) -> str:
    """Return which existing columns may be meant, such as "; rename 'person_id' to pid"."""
    free = {_folded(name): name for name in names if _folded(name) not in COLUMNS}
    near = {
        column: [*nearest(column, free, _SIMILAR), *(n for n in _ALIASES[column] if n in free)] for column in absent
    }
    hints = [f"{free[found[0]]!r} to {column}" for column, found in near.items() if found]
    return f"; rename {', '.join(hints)}" if hints else ""
