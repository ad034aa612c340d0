"""Tables of captions in files: CSV in any common encoding and separator, or Parquet; read as text, cell by cell."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import DataError, raise_problems
from data.files import atomic_path, write_table
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


class FileRow(NamedTuple):
    """A row of a file. number: from 1, without the header. cells: column -> text, "" if empty; known columns only."""

    number: int
    cells: Mapping[str, str]

    def cell(self, column: str) -> str:
        """Return the text in `column`, without blanks around it; "" if the file lacks the column."""
        return self.cells.get(column, "").strip()


def read_rows(file: Path) -> list[FileRow]:
    """Return the rows of a CSV or Parquet file. Raises DataError for a file that is not a table of captions."""
    if not file.is_file():
        raise DataError(f"{file} does not exist or is not a file: give a .csv, .tsv or .parquet file of captions")
    try:
        rows = list(_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _csv(file))
    except (pa.ArrowException, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read as a table of captions: {error}. Write it again as CSV or Parquet"
        ) from error
    except UnicodeError as error:
        raise DataError(f"{file} is not UTF-8 text{bad_line(file)}; save it as UTF-8") from error
    if not rows:
        raise DataError(f"{file} does not contain any rows")
    return rows


def write_rows(file: Path, rows: Sequence[Mapping[str, str | None]]) -> None:
    """Write rows of `COLUMNS` as CSV, tab-separated or Parquet, by the ending of `file`, atomically.

    In text files, a cell that a spreadsheet may run as a formula begins with an apostrophe, which `read_rows` removes;
    a file with letters beyond ASCII begins with a byte order mark.
    """
    if file.suffix.lower() == ".parquet":
        schema = pa.schema([(name, pa.string()) for name in COLUMNS])
        write_table(file, pa.Table.from_pylist([dict(row) for row in rows], schema=schema), schema)
        return
    lines = [[*COLUMNS], *([_armed(row.get(name) or "") for name in COLUMNS] for row in rows)]
    plain = all(text.isascii() for line in lines for text in line)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with (
        atomic_path(file) as temporary,
        temporary.open("w", encoding="utf-8" if plain else "utf-8-sig", newline="") as out,
    ):
        csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows(lines)


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
    schema = pq.read_schema(file)
    names = dict(zip(schema.names, _names(file, schema.names), strict=True))
    known = [name for name in schema.names if names[name] in COLUMNS]
    columns = {name: _values(file, name, column) for name, column in zip(known, _columns(file, known), strict=True)}
    wrong = sorted(
        (number, f"row {number}: {name} is {type(value).__name__} {str(value)[:_SHOWN]!r}, expected text")
        for name, values in columns.items()
        for number, value in enumerate(values, start=1)
        if _text(value, names[name]) is None
    )
    more = [f"and {len(wrong) - _MOST_PROBLEMS:,} more"] if len(wrong) > _MOST_PROBLEMS else []
    told = [*(problem for _, problem in wrong[:_MOST_PROBLEMS]), *more]
    raise_problems(f"{file}, of which nothing was imported, has cells that are not text", told, DataError)
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        cells = ((names[name], _text(value, names[name]) or "") for name, value in zip(known, values, strict=True))
        yield _row(number, cells)


def _columns(file: Path, names: Sequence[str]) -> list[pa.ChunkedArray]:
    table = pq.read_table(file, columns=list(names))
    return [table[name] for name in names]


def _values(file: Path, name: str, column: pa.ChunkedArray) -> list[Any]:
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
