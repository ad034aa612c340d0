"""Writes the images of any reader as a manifest, to be edited by hand and read back with data.reader=manifest.

Reading it back gives the same images.parquet. Values are written as they are: a label that begins with =, +, - or @
would otherwise not be read back as the same label; `formulas` counts those that a spreadsheet may run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa

from data.columns.records import ImageRecord, Records
from data.columns.source import BATCH_ROWS, in_blocks
from data.errors import ConfigError
from data.files import atomic_path, write_tables
from data.people import UNKNOWN_CAMERA
from data.schemas import IMAGES, LABEL

SUFFIXES: Final = (".csv", ".tsv", ".parquet")
_COLUMNS: Final = ("path", "split", "pid", "camid")
_SENTENCES: Final = pa.field("sentences", pa.list_(pa.string()))
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def keep_existing(file: Path, *, overwrite: bool) -> None:
    """Raise ConfigError if `file` exists, unless `overwrite` is set."""
    if file.exists() and not overwrite:
        raise ConfigError(f"{file} exists already: give another --output, or add --overwrite to replace it")


def write_manifest(file: Path, records: Records, *, overwrite: bool) -> None:
    """Write one row per record, atomically: CSV, tab-separated or Parquet, by the ending of `file`.

    An unknown camera is an empty cell. The columns label and sentences are only there if a record has them; the
    sentences are a list, in CSV as JSON. A CSV file with letters beyond ASCII begins with a byte order mark, which
    spreadsheets need to read them. Raises ConfigError if the file exists, unless `overwrite` is set.
    """
    keep_existing(file, overwrite=overwrite)
    labeled, described = records.has_labels(), records.has_sentences()
    if file.suffix.lower() == ".parquet":
        schema = pa.schema([IMAGES.field(name) for name in _COLUMNS] + [LABEL] * labeled + [_SENTENCES] * described)
        rows = (_rows(part).select(schema.names).cast(schema) for part in records.batches())
        write_tables(file, in_blocks(rows, BATCH_ROWS), schema)
        return
    header = [*_COLUMNS, *(["label"] if labeled else []), *(["sentences"] if described else [])]
    plain = all(text.isascii() for line in _lines(records, labeled=labeled, described=described) for text in line)
    with (
        atomic_path(file) as temporary,
        temporary.open("w", encoding="utf-8" if plain else "utf-8-sig", newline="") as stream,
    ):
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        lines = csv.writer(stream, delimiter=delimiter, lineterminator="\r\n")
        lines.writerow(header)
        lines.writerows(_lines(records, labeled=labeled, described=described))


def _rows(records: Records) -> pa.Table:
    """Return all columns of some records."""
    table = records.table()
    camids = pa.array(records.camids, mask=records.camids == UNKNOWN_CAMERA)
    sentences = pa.nulls(len(records), _SENTENCES.type) if records.sentences is None else records.sentences
    table = table.set_column(table.schema.get_field_index("camid"), "camid", camids)
    return table.append_column(_SENTENCES.name, sentences)


def _lines(records: Iterable[ImageRecord], *, labeled: bool, described: bool) -> Iterator[list[str]]:
    for record in records:
        camera = "" if record.camid == UNKNOWN_CAMERA else str(record.camid)
        said = json.dumps(record.sentences, ensure_ascii=False) if record.sentences else ""
        added = [*([record.label] if labeled else []), *([said] if described else [])]
        yield [record.path, record.split, str(record.pid), camera, *added]


def formulas(records: Iterable[ImageRecord]) -> int:
    """Return the number of records whose path or label a spreadsheet may take for a formula."""
    return sum(record.path.startswith(_FORMULA) or record.label.startswith(_FORMULA) for record in records)
