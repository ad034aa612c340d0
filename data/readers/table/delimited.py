"""Tables as text: CSV and its relatives, in any common encoding and separator."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import pyarrow as pa

from data.errors import DataError
from data.readers.table.coded import NamedCell, RowBatch
from data.readers.table.columns import ALWAYS, COLUMNS, folded, positions
from data.sources.places import open_binary, open_text

BATCH_ROWS: Final = 16_384
_DELIMITERS: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
# The mark of UTF-32 begins with that of UTF-16.
_BOMS: Final = {
    **{codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"},
    **{codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"},
}
_ZIP: Final = b"PK\x03\x04"  # a spreadsheet (.xlsx, .ods)


def csv_batches(file: Path, required: Sequence[str]) -> Iterator[RowBatch]:
    """Yield the rows of a CSV file with the columns `required`."""
    encoding = encoding_of(file)
    try:
        with open_text(file, encoding=encoding, newline="") as stream:
            delimiter, header = _header(file, stream.readline())
            where, first = positions(file, header, required), 1
            lines = _lines(file, stream, delimiter, len(header))
            while rows := list(islice(lines, BATCH_ROWS)):
                columns = {name: pa.array([cells[at] for cells in rows], pa.string()) for name, at in where.items()}
                columns = dict.fromkeys(ALWAYS, pa.repeat("", len(rows))) | columns
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
        return len({folded(cell) for cell in cells} & names)

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


def csv_column(file: Path, name: str) -> tuple[list[str], list[NamedCell]]:
    """Return the names of the columns, and, of each row, the path and the cell in the column `name`, if that exists."""
    with open_text(file, encoding=encoding_of(file), newline="") as stream:
        delimiter, header = _header(file, stream.readline())
        at = {folded(column): place for place, column in enumerate(header)}
        if folded(name) not in at:
            return header, []
        path, cell = at["path"], at[folded(name)]
        lines = enumerate(_lines(file, stream, delimiter, len(header)), start=1)
        return header, [NamedCell(f"row {number}", cells[path], cells[cell]) for number, cells in lines]
