"""Any dataset in WebDataset tar shards, labeled by fields of the samples or by the names of the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from data.errors import DataError, RejectedRow, counted
from data.images.decode import REASONS
from data.readers.base import PATH_DETAILS, Collector, Scan, Unusable
from data.readers.manifest import split_of
from data.readers.manifest_file import Row
from data.readers.manifest_labels import Cameras, Identities, is_missing
from data.readers.sentences import sentences_in
from data.readers.webdataset.find import compressed_shards, find_shards
from data.readers.webdataset.rows import Sample, ShardOptions, rows_of
from data.readers.webdataset.samples import Fields
from data.readers.webdataset.tables import LABELS, ShardReading
from data.sources.address import shown
from data.sources.shards import ShardTable
from data.sources.tar import BrokenTarError, CompressedTarError

UNLABELED: Final = "labels=none"
"""Version of a dataset without labels."""
_OTHER_RULES: Final = (
    "data.labels=names if the images have names such as 0002_c1s1_000451_03.jpg, data.labels=folders if each person has"
    " a folder in the shards, or data.labels=none to caption and search images without labels"
)


def webdataset(
    root: Path, *, options: ShardOptions, keep_junk: bool = False, by_rule: bool = False, reading: ShardReading
) -> Scan:
    """Read the tar shards below `root`; an image is the path of its shard, a slash, and its name in the shard.

    by_rule: splits are assigned by rule later. reading: how shards are read.

    Rejected: ``broken_shard``, a shard of which no image is used; ``duplicate_member``, ``several_images``,
    ``not_a_file``, ``outside_root`` and ``bad_path``, members; ``bad_row``, ``bad_pid``, ``bad_camid``, ``bad_split``,
    ``bad_sentences``, ``bad_name`` and ``no_label``, labels. Raises DataError if no shard is found, if one is
    compressed, and if a field does not exist in any sample.
    """
    found = find_shards(root, options.shards)
    version = "" if options.labels == "fields" else f"labels={options.labels}"
    collector = Collector(name="webdataset", root=found.root, version=version, keep_junk=keep_junk)
    tables = _tables(collector, found.paths, options.fields, reading)
    collector.notices += [*_unread_files(found.others), *_unread_members(tables)]
    samples = [sample for shard, table in tables.items() for sample in _samples(shard, table)]
    _check_fields(found.root, options, samples, tables)
    _collect(collector, samples, options, by_rule=by_rule)
    return collector.finish()


def _tables(collector: Collector, paths: Sequence[str], fields: Fields, reading: ShardReading) -> dict[str, ShardTable]:
    """Return shard -> table, and reject the shards and members that cannot be used."""
    tables, compressed = dict[str, ShardTable](), list[str]()
    for number, path in enumerate(paths, start=1):
        try:
            tables[path] = reading.table(f"{collector.root}/{path}", fields)
        except CompressedTarError:
            compressed.append(path)
        except BrokenTarError as error:
            detail = f"{error}; copy it again. None of its images is used"
            collector.reject(path, "broken_shard", detail)
        except (RejectedRow, OSError) as error:
            reason = error.reason if isinstance(error, RejectedRow) else "unreadable"
            collector.reject(path, reason, (REASONS | PATH_DETAILS)[reason])
        reading.progress(number, len(paths), "shards read")
    if compressed:
        raise compressed_shards(collector.root, compressed)
    for path, table in tables.items():
        for name, reason, detail in table.facts["refused"]:
            collector.reject(f"{path}/{name}", reason, detail)
    return tables


def _unread_files(others: Sequence[str]) -> Iterator[str]:
    if others:
        yield f"{counted(len(others), 'file')} beside the shards not read, such as {others[0]}"


def _unread_members(tables: Mapping[str, ShardTable]) -> Iterator[str]:
    """Yield notices about members, samples and shards that do not give an image."""
    endings, alone, example = Counter[str](), 0, ""
    for path, table in tables.items():
        endings.update(table.facts["unread"])
        number, *first = table.facts["alone"]
        alone, example = alone + number, example or "".join(f"{path}/{key}" for key in first)
    if endings:
        listed = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(endings.items()))
        yield f"{counted(endings.total(), 'member')} of the shards not read, by ending: {listed}"
    if alone:
        yield f"{counted(alone, 'sample')} without an image, such as {example}"
    empty = [path for path, table in tables.items() if not len(table.rows)]
    if empty:
        yield f"{counted(len(empty), 'shard')} without a usable image, such as {empty[0]}"


def _samples(shard: str, table: ShardTable) -> Iterator[Sample]:
    for batch in table.rows.select(["name", "problem", *LABELS]).to_batches():
        yield from _samples_of(shard, batch)


def _samples_of(shard: str, batch: pa.RecordBatch) -> Iterator[Sample]:
    names, problems, *labels = (column.to_pylist() for column in batch.columns)
    for name, problem, *texts in zip(names, problems, *labels, strict=True):
        cells = {column: json.loads(text) for column, text in zip(LABELS, texts, strict=True) if text is not None}
        yield Sample(f"{shard}/{name}", shard, name, cells, problem)


def _check_fields(
    root: Path, options: ShardOptions, samples: Sequence[Sample], tables: Mapping[str, ShardTable]
) -> None:
    """Raise DataError if a field that is needed, or that a setting names, does not exist in any sample."""
    present = {column for sample in samples for column in sample.cells}
    for column, name in options.fields._asdict().items():
        is_needed = column == "pid" and options.labels == "fields"
        is_named = name != Fields._field_defaults[column]
        if samples and (is_needed or is_named) and column not in present:
            others = f". Or set {_OTHER_RULES}" if is_needed else ""
            raise DataError(
                f"no sample of {shown(root)} has the field {name} (data.{column}_field), neither as a key of its json"
                f" member nor as a member with this ending. {_seen(tables, column)}{others}"
            )


def _seen(tables: Mapping[str, ShardTable], column: str) -> str:
    """Return which fields the samples have, and a setting that reads one."""
    seen = sorted({name for table in tables.values() for name in table.facts["seen"]} - {"json"})
    if not seen:
        return "The samples have images only"
    return f"The samples have: {', '.join(seen)}. Set data.{column}_field to one of these, such as {seen[0]}"


def _collect(collector: Collector, samples: Sequence[Sample], options: ShardOptions, *, by_rule: bool) -> None:
    """Add each sample to `collector`, or reject it."""
    rows = list(rows_of(collector, samples, options))
    identities, cameras = Identities(collector.root, rows), Cameras(rows)
    collector.notices += [*identities.notices, *cameras.notices]
    n_empty = 0
    for row in rows:
        path = str(row.path)
        try:
            split = _split(row, options, by_rule=by_rule)
            pid, label = identities.of(row)
            sentences = sentences_in(row.sentences)
            collector.add(path, split, pid, cameras.of(row), label, sentences=sentences.texts)
            n_empty += sentences.n_empty
        except Unusable as error:
            collector.reject(path, error.reason, error.detail)
    if n_empty:
        collector.notices.append(f"{counted(n_empty, 'empty sentence')} left out")


def _split(row: Row, options: ShardOptions, *, by_rule: bool) -> str:
    if is_missing(row.split) and not by_rule:
        raise Unusable(
            "bad_split",
            f"the sample has no field {options.fields.split} (data.split_field), and the name of its shard does not"
            " begin with train, query or gallery; rename the shard, such as train-000000.tar, or set"
            " data.split=by_identity",
        )
    return split_of(row.split, by_rule=by_rule)
