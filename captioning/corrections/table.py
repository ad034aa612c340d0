"""Tables of captions in files: CSV in any common encoding and separator, or Parquet; read as text, cell by cell."""

from __future__ import annotations

import csv
import math
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.columns.shuffle import BLOCK_ROWS
from data.columns.source import in_blocks
from data.errors import DataError, raise_problems
from data.files import atomic_path, write_tables
from data.readers.table.delimited import bad_line, delimiter_of, encoding_of
from data.slots import SLOTS

SUFFIXES: Final = (".csv", ".tsv", ".parquet")
ATTRIBUTES: Final = tuple(f"attr_{slot}" for slot in SLOTS)
COLUMNS: Final = (
    *("image_path", "image_sha256", "kind", "caption", *ATTRIBUTES),
    *("author", "time", "provenance", "model_caption", "model_captioner"),
)
"""The columns of an exported file, all text. An imported one needs an image and a caption or attributes."""
_ALIASES: Final = {"path": "image_path", "sha256": "image_sha256", "text": "caption"}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters of cells that a spreadsheet may run as a formula, and the mark that prevents it."""
_SHOWN: Final = 40  # characters of a wrong cell
_MOST_PROBLEMS: Final = 100
_AT_ONCE: Final = 1 << 14
_SCHEMA: Final = pa.schema([(name, pa.string()) for name in COLUMNS])


class FileRow(NamedTuple):
    """A row of a file. number: from 1, without the header. cells: column -> text, "" if empty; known columns only."""

    number: int
    cells: Mapping[str, str]

    def cell(self, column: str) -> str:
        """Return the text in `column`, without blanks around it; "" if the file lacks the column."""
        return self.cells.get(column, "").strip()


def read_rows(file: Path) -> Iterator[FileRow]:
    """Return the rows of a CSV or Parquet file, read as they are asked for. The first one is read at once.

    Raises DataError for a file that is not a table of captions, at once or at the row that shows it.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist or is not a file: give a .csv, .tsv or .parquet file of captions")
    rows = _explained(file, _parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _csv(file))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{file} does not contain any rows")
    return chain([first], rows)


def _explained(file: Path, rows: Iterator[FileRow]) -> Iterator[FileRow]:
    try:
        yield from rows
    except (pa.ArrowException, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as a table of captions: {error}. Write it again as CSV or Parquet"
        ) from error
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-8 text{bad_line(file)}; save it as UTF-8") from error


def write_rows(file: Path, rows: Iterable[Mapping[str, str | None]]) -> int:
    """Write rows of `COLUMNS` as CSV, tab-separated or Parquet, by the ending of `file`; return their number.

    The file is replaced atomically. In text files, a cell that a spreadsheet may run as a formula begins with an
    apostrophe, which `read_rows` removes; a file with letters beyond ASCII begins with a byte order mark.
    """
    if file.suffix.lower() != ".parquet":
        return _write_csv(file, rows, "\t" if file.suffix.lower() == ".tsv" else ",")
    count = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal count
        rest = iter(rows)
        while some := list(islice(rest, _AT_ONCE)):
            count += len(some)
            yield pa.Table.from_pylist(some, schema=_SCHEMA)
        if not count:
            yield _SCHEMA.empty_table()

    write_tables(file, in_blocks(tables(), BLOCK_ROWS), _SCHEMA)
    return count


def _write_csv(file: Path, rows: Iterable[Mapping[str, str | None]], delimiter: str) -> int:
    """Write the rows without a byte order mark, and copy them if they turn out to need one."""
    count, is_ascii = 0, True
    with atomic_path(file) as temporary, TemporaryFile(dir=file.parent) as body:
        text = TextIOWrapper(body, encoding="utf-8", newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for row in rows:
            cells = [_armed(row.get(name) or "") for name in COLUMNS]
            is_ascii = is_ascii and all(map(str.isascii, cells))
            writer.writerow(cells)
            count += 1
        text.flush()
        body.seek(0)
        with temporary.open("wb") as out:
            out.write(b"" if is_ascii else BOM_UTF8)
            copyfileobj(body, out)
        text.detach()
    return count


def _armed(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _disarmed(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def _csv(file: Path) -> Iterator[FileRow]:
    with file.open(encoding=encoding_of(file), newline="") as stream:
        header = stream.readline()
        delimiter = delimiter_of(header, (*COLUMNS, *_ALIASES))
        names = _names(file, next(csv.reader([header], delimiter=delimiter), []))
        lines = (cells for cells in csv.reader(stream, delimiter=delimiter, strict=True) if cells)
        for number, cells in enumerate(lines, start=1):
            if len(cells) != len(names):
                raise DataError(
                    f"{file}: row {number} has {len(cells)} values, but the first line {len(names)}. Put values that"
                    f" contain {delimiter!r} between double quotes"
                )
            yield _row(number, zip(names, map(_disarmed, cells), strict=True))


def _parquet(file: Path) -> Iterator[FileRow]:
    with pq.ParquetFile(file, pre_buffer=False) as opened:
        schema = opened.schema_arrow
        names = dict(zip(schema.names, _names(file, schema.names), strict=True))
        known = [name for name in schema.names if names[name] in COLUMNS]
        _check_cells(file, opened, {name: names[name] for name in known if not _is_text(schema.field(name).type)})
        cells = zip(*(_cells(file, opened, name) for name in known), strict=True)
        for number, values in enumerate(cells, start=1):
            texts = ((names[name], _text(value, names[name]) or "") for name, value in zip(known, values, strict=True))
            yield _row(number, texts)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _check_cells(file: Path, opened: pq.ParquetFile, names: Mapping[str, str]) -> None:
    """Raise DataError that lists the cells that are not text. names: of the columns -> in `COLUMNS`."""
    told: list[str] = []
    count, ordered = 0, sorted(names)
    for number, values in enumerate(zip(*(_cells(file, opened, name) for name in ordered), strict=True), start=1):
        for name, value in zip(ordered, values, strict=True):
            if _text(value, names[name]) is None:
                count += 1
                shown = f"{type(value).__name__} {str(value)[:_SHOWN]!r}"
                if count <= _MOST_PROBLEMS:
                    told.append(f"row {number}: {name} is {shown}, expected text")
    raise_problems(
        f"{file}, of which nothing was imported, has cells that are not text",
        told,
        DataError,
        more=max(0, count - _MOST_PROBLEMS),
    )


def _cells(file: Path, opened: pq.ParquetFile, name: str) -> Iterator[Any]:
    """Yield the cells of a column."""
    for batch in opened.iter_batches(_AT_ONCE, columns=[name]):
        yield from _values(file, name, batch.column(0))


def _values(file: Path, name: str, column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeError:
        raise DataError(f"{file}: column {name} contains text that is not UTF-8; write it again as UTF-8") from None
    except (ValueError, OverflowError) as error:
        raise DataError(f"{file}: column {name} cannot be read ({error}); write it as text") from error
    return values


def _text(value: object, column: str) -> str | None:
    """Return the text of a cell, "" if it is null or NaN, None if it is not text (or, in ``time``, a time)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column == "time" and isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value if isinstance(value, str) else None


def _row(number: int, cells: Iterable[tuple[str, str]]) -> FileRow:
    return FileRow(number, {name: text for name, text in cells if name in COLUMNS})


def _names(file: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns. Raises DataError if they do not make a table of captions."""
    folded = [name.strip().casefold() for name in header]
    names = [_ALIASES[name] if name in _ALIASES and _ALIASES[name] not in folded else name for name in folded]
    twice = sorted({name for name in names if name in COLUMNS and names.count(name) > 1})
    if twice:
        raise DataError(f"{file} has more than one column {', '.join(twice)}: rename or remove all but one")
    unknown = [name for name in names if name.startswith("attr_") and name not in COLUMNS]
    if unknown:
        raise DataError(f"{file}: unknown column {', '.join(unknown)}: expected {', '.join(ATTRIBUTES)}")
    lacks = [
        what
        for what, ones in (("image_path or image_sha256", COLUMNS[:2]), ("caption or attr_<slot>", COLUMNS[3:-5]))
        if not {*ones} & {*names}
    ]
    if lacks:
        raise DataError(
            f"{file} lacks a column {' and a column '.join(lacks)}. Found: {', '.join(map(repr, header))}. Put the"
            " names in the first line, separated by commas, semicolons or tabs"
        )
    return names
