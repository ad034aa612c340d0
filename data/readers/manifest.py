"""Any dataset with a manifest: a Parquet or CSV file with the columns path, split, pid and camid.

The file is read in batches, so that only the records are kept in memory. A row becomes a record or is rejected with its
row number; only a problem of the whole file is an error.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from data.errors import DataError, RejectedRow
from data.readers.base import MAX_INT64, PATH_DETAILS, Collector, PathGate, Scan, existing_folder
from data.splits import SPLITS

COLUMNS: Final = ("path", "split", "pid", "camid")
_NAMES: Final = ("manifest.parquet", "manifest.csv")
_BATCH_ROWS: Final = 16_384
# Integers as text; pandas writes "3.0" for integer columns that had missing values.
_INTEGER: Final = re.compile(r"\s*([+-]?\d{1,19})(?:\.0*)?\s*", re.ASCII)

_RawRow = tuple[Any, Any, Any, Any]  # path, split, pid and camid as stored; any type


class _Label(NamedTuple):
    split: str
    pid: int
    camid: int

    def __str__(self) -> str:
        return f"{self.split} pid {self.pid} camid {self.camid}"


def manifest(root: Path, *, manifest: str, keep_junk: bool) -> Scan:
    """Read a manifest with paths relative to `root`.

    manifest: the file; a relative name is searched under `root` first, then in the working directory. If it is empty,
    `root` is either a folder with a manifest.parquet or manifest.csv, or the file itself, with paths relative to its
    folder.

    Rejected rows: ``outside_root`` (absolute, .. or a link that leads outside), ``bad_path``, ``missing``,
    ``bad_split``, ``bad_pid``, ``bad_camid``, ``duplicate_row``. One path with two different labels is a DataError.
    """
    file, base = _find(root, manifest)
    collector = Collector(name="manifest", root=base, version="", keep_junk=keep_junk)
    gate = PathGate(base)
    seen: dict[str, _Label] = {}
    clashes: list[str] = []
    for number, row in enumerate(_rows(file), start=1):
        try:
            path, label = _parse(gate, row)
            if path not in seen:
                seen[path] = label
                collector.add(path, *label)
            elif seen[path] == label:
                raise _Unusable("duplicate_row", "an earlier row is identical")
            else:
                clashes.append(f"row {number}: {path} is {label}, but {seen[path]} in an earlier row")
        except _Unusable as error:
            text = row[0] if isinstance(row[0], str) else ""
            collector.reject(text, error.reason, f"row {number}: {error.detail}")
    if clashes:
        shown = "\n".join(f"  - {clash}" for clash in clashes[:5])
        raise DataError(f"{file} has more than one label for {len(clashes)} path(s); keep one row per path:\n{shown}")
    return collector.finish()


class _Unusable(RejectedRow):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail


def _find(root: Path, manifest: str) -> tuple[Path, Path]:
    if not manifest and root.expanduser().is_file():
        file = root.expanduser().absolute()
        return file, file.parent.resolve()
    base = existing_folder(root)
    wanted = [manifest] if manifest else list(_NAMES)
    candidates = [base / Path(name).expanduser() for name in wanted]
    if manifest:
        candidates.append(Path(manifest).expanduser().absolute())
    for candidate in candidates:
        if candidate.is_file():
            return candidate, base
    raise DataError(
        f"no manifest found: {' or '.join(wanted)} does not exist in {base}; set data.manifest to a Parquet or CSV file"
        f" with the columns {', '.join(COLUMNS)}"
    )


def _rows(file: Path) -> Iterator[_RawRow]:
    """Yield (path, split, pid, camid) as stored in the file."""
    try:
        batches = _parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _csv(file)
        for batch in batches:
            yield from zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} cannot be read as a manifest: {error}. Write it as Parquet or CSV") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}. Check its permissions") from error


def _parquet(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as table:
        _need_columns(file, table.schema_arrow.names)
        yield from table.iter_batches(batch_size=_BATCH_ROWS, columns=list(COLUMNS))


def _csv(file: Path) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    parse = pc.ParseOptions(delimiter=delimiter)
    with file.open("rb") as stream:
        first = stream.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file} is UTF-16 text; save it as UTF-8")
    header = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    _need_columns(file, [name.removeprefix('"').removesuffix('"') for name in header.split(delimiter)])
    convert = pc.ConvertOptions(include_columns=list(COLUMNS), column_types=dict.fromkeys(COLUMNS, pa.string()))
    with pc.open_csv(file, parse_options=parse, convert_options=convert) as reader:
        yield from reader


def _need_columns(file: Path, names: list[str]) -> None:
    absent = [name for name in COLUMNS if name not in names]
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if absent or twice:
        problem = f"lacks the column(s) {', '.join(absent)}" if absent else f"has {', '.join(twice)} twice"
        raise DataError(
            f"{file} {problem}; it needs {', '.join(COLUMNS)} (others are ignored)."
            f" Found: {', '.join(map(repr, names))}. Separate a CSV file by commas, and put the names in its first"
            " line, without spaces around them"
        )


def _parse(gate: PathGate, row: _RawRow) -> tuple[str, _Label]:
    text, split, pid, camid = row
    if split not in SPLITS:
        raise _Unusable("bad_split", f"split {split!r} is not one of {', '.join(SPLITS)}")
    label = _Label(split, _integer(pid, "pid", -1), _integer(camid, "camid", 0))
    if not isinstance(text, str):
        raise _Unusable("bad_path", f"path {text!r} is not text")
    try:
        return gate.admit(text), label
    except RejectedRow as error:
        raise _Unusable(error.reason, PATH_DETAILS[error.reason]) from error


def _integer(value: Any, column: str, lowest: int) -> int:
    """Return `value` as an integer from `lowest` up that Parquet can store."""
    number: int | None = None
    if isinstance(value, str):
        match = _INTEGER.fullmatch(value)
        number = int(match[1]) if match else None
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if number is None or not lowest <= number <= MAX_INT64:
        raise _Unusable(f"bad_{column}", f"{column} {value!r} is not an integer from {lowest} up")
    return number
