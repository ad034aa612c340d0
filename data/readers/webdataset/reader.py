"""Any dataset in WebDataset tar shards, labeled by fields of the samples or by the names of the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns.records import SENTENCES_TYPE, Ints, Records, joined
from data.errors import DataError, RejectedRow, counted
from data.images.decode import REASONS
from data.people import JUNK
from data.readers.base import Collector, Scan, Unusable
from data.readers.folders import cameras_of, refuse_splits
from data.readers.manifest import split_of
from data.readers.paths import PATH_DETAILS
from data.readers.sentences import Sentences, sentences_in
from data.readers.table.coded import Cell, PathCells
from data.readers.table.labels import Mixed, is_missing
from data.readers.table.rows import Listed, read_labels, records_of
from data.readers.webdataset.find import DETAILS, compressed_shards, find_shards
from data.readers.webdataset.rows import ShardOptions, coded_rows
from data.readers.webdataset.samples import Fields
from data.readers.webdataset.tables import ShardReading
from data.sources.address import shown
from data.sources.shards import ShardTable
from data.sources.tar import BrokenTarError, CompressedTarError

UNLABELED: Final = "labels=none"
"""Version of a dataset without labels."""
_MOST_ENDINGS: Final = 12
"""Different endings that a notice lists."""
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
    for path, reason in found.refused.items():
        collector.reject(path, reason, DETAILS[reason])
    tables = _tables(collector, found.paths, options.fields, reading)
    collector.notices += [*_unread_files(found.others), *_unread_members(tables)]
    _check_fields(found.root, options, tables)
    return collector.scan(_records(collector, tables, options, by_rule=by_rule))


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
        most = dict(sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:_MOST_ENDINGS])
        listed = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(most.items()))
        listed += f" and {len(endings) - len(most):,} more" if len(endings) > len(most) else ""
        yield f"{counted(endings.total(), 'member')} of the shards not read, by ending: {listed}"
    if alone:
        yield f"{counted(alone, 'sample')} without an image, such as {example}"
    empty = [path for path, table in tables.items() if not len(table.rows)]
    if empty:
        yield f"{counted(len(empty), 'shard')} without a usable image, such as {empty[0]}"


def _check_fields(root: Path, options: ShardOptions, tables: Mapping[str, ShardTable]) -> None:
    """Raise DataError if a field that is needed, or that a setting names, does not exist in any sample."""
    rows = [table.rows for table in tables.values() if len(table.rows)]
    for column, name in options.fields._asdict().items():
        is_needed = column == "pid" and options.labels == "fields"
        is_named = name != Fields._field_defaults[column]
        is_absent = all(some[column].null_count == len(some) for some in rows)
        if rows and (is_needed or is_named) and is_absent:
            others = f" Or set {_OTHER_RULES}" if is_needed else ""
            raise DataError(
                f"no sample of {shown(root)} has the field {name} (data.{column}_field), neither as a key of its json"
                f" member nor as a member with this ending. {_seen(tables, column, options.fields)}{others}"
            )


def _seen(tables: Mapping[str, ShardTable], column: str, fields: Fields) -> str:
    """Return which fields the samples have, and a setting that reads one: the usual name, or one without a use yet."""
    seen = sorted({name for table in tables.values() for name in table.facts["seen"]} - {"json"})
    if not seen:
        return "The samples have images only."
    unused = [name for name in seen if name not in {*Fields._field_defaults.values(), *fields}]
    usual = [name for name in seen if name == Fields._field_defaults[column]]
    listed = f"The samples have: {', '.join(seen)}."
    fitting = [*usual, *unused]
    return f"{listed} Set data.{column}_field to the one that fits, such as {fitting[0]}." if fitting else listed


def _records(
    collector: Collector, tables: Mapping[str, ShardTable], options: ShardOptions, *, by_rule: bool
) -> Records:
    """Return the records of the images whose labels can be used; `collector` rejects the others."""
    table = coded_rows(collector, tables, options)
    if options.labels == "folders":
        refuse_splits(collector.root, {str(label) for label in table.cells["label"]})
    labels = read_labels(
        collector.root, table, partial(_split, options=options, by_rule=by_rule), _mixed(options.fields.pid)
    )
    parts = list(table.parts())
    if options.labels == "folders":
        camids, cameras = np.unique(cameras_of(_members(tables, parts), options.camera_pattern), return_inverse=True)
        labels = replace(labels, camids=camids, cameras=cameras.astype(np.int32))
    collector.notices += labels.notices
    paths, said = joined([part.paths for part in parts]), _said(parts)
    refused = {row: labels.problems[labels.refused[row]] for row in np.flatnonzero(labels.refused).tolist()}
    for row, error in (said.refused | refused).items():
        assert error is not None
        collector.reject(str(paths[row]), error.reason, error.detail)
    used = np.full(len(paths), True)
    used[[*said.refused, *refused]] = False
    if n_empty := int(said.n_empty[used].sum()):
        collector.notices.append(f"{counted(n_empty, 'empty sentence')} left out")
    listed = Listed(np.arange(len(paths)), paths, said.texts)
    return records_of(collector, labels, listed, used[listed.sort()])


def _mixed(field: str) -> Mixed:
    return Mixed(
        f"the field {field} (data.pid_field)",
        f"Write text such as 'p7' into all samples, or integers from 0 up ({JUNK} is junk), or set data.labels=folders",
    )


def _members(tables: Mapping[str, ShardTable], parts: Sequence[PathCells]) -> pa.Array:
    """Return the names of the images in their shards; each of `parts` has those of one shard."""
    return joined(
        [pc.utf8_slice_codeunits(part.paths, len(shard) + 1) for shard, part in zip(tables, parts, strict=True)]
    )


class _Said(NamedTuple):
    """The sentences of all images. texts: None if there are none. refused: row -> why its sentences are unusable."""

    texts: pa.Array | None
    n_empty: Ints
    refused: dict[int, Unusable]


def _said(parts: Sequence[PathCells]) -> _Said:
    refused, texts, n_empty = dict[int, Unusable](), list[pa.Array](), list[Ints]()
    for part in parts:
        found = [_spoken(cell, row, refused) for row, cell in enumerate(_cells(part), part.start)]
        texts.append(pa.array([one.texts for one in found], SENTENCES_TYPE))
        n_empty.append(np.array([one.n_empty for one in found], dtype=np.int64))
    is_described = any(len(one.flatten()) for one in texts)
    return _Said(
        pa.concat_arrays(texts) if is_described else None, np.concatenate([np.empty(0, np.int64), *n_empty]), refused
    )


def _cells(part: PathCells) -> Sequence[str | None]:
    """Return the sentences of each image in a part as JSON."""
    assert part.sentences is not None
    cells: list[str | None] = part.sentences.to_pylist()
    return cells


def _spoken(cell: str | None, row: int, refused: dict[int, Unusable]) -> Sentences:
    try:
        return sentences_in(None if cell is None else json.loads(cell))
    except Unusable as error:
        refused[row] = error
        return Sentences((), 0)


def _split(cell: Cell, *, options: ShardOptions, by_rule: bool) -> str:
    if is_missing(cell) and not by_rule:
        raise Unusable(
            "bad_split",
            f"the sample does not have the field {options.fields.split} (data.split_field), and the name of its shard"
            " does not begin with train, query or gallery; rename the shard, such as train-000000.tar, or set"
            " data.split=by_identity",
        )
    return split_of(cell, by_rule=by_rule)
