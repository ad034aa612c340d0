"""The labels of samples as rows of a manifest: from their fields, from the names of images, or from folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.people import DISTRACTOR, Mask
from data.readers.base import Collector
from data.readers.bounding_box import LABELED_NAME
from data.readers.table.coded import CodedRows, RowBatch
from data.readers.webdataset.samples import Fields
from data.sources.shards import ShardTable
from data.splits import GALLERY, SPLITS

LabelRule = Literal["fields", "names", "folders", "none"]

_SHARD_SPLIT: Final = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
_NOT_A_CELL: Final = r"^[\[{tf]"
"""The JSON of lists, objects and booleans, which are neither numbers nor text."""
_MOST_SHOWN: Final = 60


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Settings of the reader, as in `data.datasets.DatasetConfig`."""

    shards: str = ""
    labels: LabelRule = "fields"
    fields: Fields = Fields()  # noqa: RUF009 - a tuple
    camera_pattern: str = ""


class _Labels(NamedTuple):
    """Columns of one shard with the labels as JSON."""

    pid: pa.Array
    camid: pa.Array
    split: pa.Array
    label: pa.Array


def coded_rows(collector: Collector, tables: Mapping[str, ShardTable], options: ShardOptions) -> CodedRows:
    """Return the images of all shards as rows of a manifest; `collector` rejects those whose labels cannot be read.

    Cells are the values that the JSON stands for. The split of a sample without one is that with which the name of its
    shard, or else of a folder around it, begins.
    """
    batches = (_batch(collector, shard, table, options) for shard, table in tables.items())
    found = CodedRows.of(batches)
    found.cells = {name: [_value(cell) for cell in cells] for name, cells in found.cells.items()}
    return found


def _value(cell: str | None) -> Any:
    return None if cell is None else json.loads(cell)


def _batch(collector: Collector, shard: str, table: ShardTable, options: ShardOptions) -> RowBatch:
    rows = table.rows.combine_chunks()
    columns = {name: _column(rows, name) for name in rows.column_names}
    refused = np.zeros(len(rows), dtype=np.bool_)

    def reject(mask: Mask, reason: str, detail: Callable[[int], str]) -> None:
        for row in np.flatnonzero(mask & ~refused).tolist():
            collector.reject(f"{shard}/{columns['name'][row]}", reason, detail(row))
        refused[mask] = True

    reject(_mask(pc.not_equal(columns["problem"], "")), "bad_row", lambda row: str(columns["problem"][row]))
    for name in ("pid", "camid", "split") if options.labels == "fields" else ("split",):
        _reject_values(reject, name, columns[name])
    labels = _labels(reject, columns, shard, options)
    used = pa.array(~refused)
    paths = pc.binary_join_element_wise(f"{shard}/", columns["name"], "").cast(pa.large_string())
    cells = {**labels._asdict(), "path": paths, "sentences": columns["sentences"]}
    return RowBatch(1, f" of {shard}", {name: column.filter(used) for name, column in cells.items()})


def _column(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _mask(column: pa.Array) -> Mask:
    mask: Mask = column.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


_Reject = Callable[[Mask, str, Callable[[int], str]], None]


def _reject_values(reject: _Reject, name: str, column: pa.Array) -> None:
    wrong = _mask(pc.match_substring_regex(column, _NOT_A_CELL))
    reject(wrong, f"bad_{name}", lambda row: f"{name} is {column[row].as_py()[:_MOST_SHOWN]}, not a number or text")


def _labels(reject: _Reject, columns: Mapping[str, pa.Array], shard: str, options: ShardOptions) -> _Labels:
    count, nothing = len(columns["name"]), pa.nulls(len(columns["name"]), pa.string())
    split = columns["split"].fill_null(json.dumps(own)) if (own := _shard_split(shard)) else columns["split"]
    match options.labels:
        case "fields":
            missing = columns["pid"].is_null().to_numpy(zero_copy_only=False)
            detail = f"the sample does not have the field {options.fields.pid} (data.pid_field)"
            reject(missing, "bad_pid", lambda row: detail)
            return _Labels(columns["pid"], columns["camid"], split, nothing)
        case "names":
            pids, camids = _from_names(reject, columns["name"].to_pylist())
            return _Labels(pids, camids, split, nothing)
        case "folders":
            return _Labels(nothing, nothing, split, _folders(reject, columns["name"].to_pylist()))
        case "none":
            return _Labels(pa.repeat(str(DISTRACTOR), count), nothing, pa.repeat(json.dumps(GALLERY), count), nothing)


def _from_names(reject: _Reject, names: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """Return the identities and cameras in the names of images."""
    found = [LABELED_NAME.match(name.rpartition("/")[2]) for name in names]
    detail = "expected a name such as 0002_c1s1_000451_03.jpg, because data.labels=names"
    reject(np.array([match is None for match in found], dtype=np.bool_), "bad_name", lambda row: detail)

    def numbers(group: str) -> pa.Array:
        return pa.array([None if match is None else str(int(match[group])) for match in found], pa.string())

    return numbers("pid"), numbers("cam")


def _folders(reject: _Reject, names: Sequence[str]) -> pa.Array:
    """Return the topmost folder of each image as JSON."""
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    detail = "an image without a folder in its shard; put it into one named after its person, such as anna/1.jpg"
    reject(np.array([folder is None for folder in folders], dtype=np.bool_), "no_label", lambda row: detail)
    return pa.array([json.dumps(folder) for folder in folders], pa.string())


def _shard_split(shard: str) -> str:
    """Return the split with which the name of a shard, or else of a folder around it, begins; "" without one."""
    for name in reversed(shard.split("/")):
        if match := _SHARD_SPLIT.match(name):
            return match[1].lower()
    return ""
