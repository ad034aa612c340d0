"""The labels of samples: from their fields, from the names of their images, or from the folders in a shard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from data.people import DISTRACTOR, UNKNOWN_CAMERA
from data.readers.base import Collector, Unusable
from data.readers.bounding_box import LABELED_NAME
from data.readers.folders import cameras_of, refuse_splits
from data.readers.manifest_file import Cell, Row
from data.readers.manifest_labels import is_missing
from data.readers.webdataset.samples import Fields
from data.splits import GALLERY, SPLITS

LabelRule = Literal["fields", "names", "folders", "none"]

_SHARD_SPLIT: Final = re.compile(rf"({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
_MOST_SHOWN: Final = 60


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Settings of the reader, as in `data.datasets.DatasetConfig`."""

    shards: str = ""
    labels: LabelRule = "fields"
    fields: Fields = Fields()  # noqa: RUF009 - a tuple
    camera_pattern: str = ""


class Sample(NamedTuple):
    """An image with its labels as stored.

    path: relative to the root. shard: its path. member: name in the shard. cells: field of `Fields` -> value, if the
    sample has it. problem: why the labels cannot be read, or "".
    """

    path: str
    shard: str
    member: str
    cells: Mapping[str, Any]
    problem: str


class _Labels(NamedTuple):
    pid: Cell
    camid: Cell
    label: str | None = None


def rows_of(collector: Collector, samples: Sequence[Sample], options: ShardOptions) -> Iterator[Row]:
    """Yield the samples as rows of a manifest; `collector` rejects those whose labels cannot be read.

    The split of a sample without one is that with which the name of its shard, or else of a folder around it, begins.
    Raises DataError if folders are splits instead of people, or if the pattern of the cameras does not match.
    """
    cameras = _cameras(collector, samples, options) if options.labels == "folders" else {}
    for sample in samples:
        try:
            labels = _labels(sample, options, cameras)
            split = GALLERY if options.labels == "none" else _split(sample)
        except Unusable as error:
            collector.reject(sample.path, error.reason, error.detail)
            continue
        yield Row(
            place=sample.path,
            path=sample.path,
            split=split,
            pid=labels.pid,
            camid=labels.camid,
            label=labels.label,
            sentences=sample.cells.get("sentences"),
        )


def _labels(sample: Sample, options: ShardOptions, cameras: Mapping[str, int]) -> _Labels:
    if sample.problem:
        raise Unusable("bad_row", sample.problem)
    match options.labels:
        case "fields":
            return _from_fields(sample, options.fields)
        case "names":
            return _from_name(sample.member)
        case "folders":
            camera = cameras.get(sample.member, UNKNOWN_CAMERA)
            return _Labels(None, None if camera == UNKNOWN_CAMERA else camera, _folder_of(sample.member))
        case "none":
            return _Labels(DISTRACTOR, None)


def _from_fields(sample: Sample, fields: Fields) -> _Labels:
    pid = _cell(sample, "pid")
    if is_missing(pid):
        raise Unusable("bad_pid", f"the sample has no field {fields.pid} (data.pid_field)")
    return _Labels(pid, _cell(sample, "camid"))


def _cell(sample: Sample, name: str) -> Cell:
    value = sample.cells.get(name)
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    raise Unusable(f"bad_{name}", f"{name} is {json.dumps(value)[:_MOST_SHOWN]}, not a number or text")


def _from_name(member: str) -> _Labels:
    match = LABELED_NAME.match(member.rpartition("/")[2])
    if match is None:
        raise Unusable("bad_name", "expected a name such as 0002_c1s1_000451_03.jpg, because data.labels=names")
    return _Labels(int(match["pid"]), int(match["cam"]))


def _folder_of(member: str) -> str:
    folder, slash, _ = member.partition("/")
    if not slash:
        raise Unusable(
            "no_label", "an image without a folder in its shard; put it into one named after its person, as anna/1.jpg"
        )
    return folder


def _cameras(collector: Collector, samples: Sequence[Sample], options: ShardOptions) -> dict[str, int]:
    """Return member -> camera for the images in folders."""
    members = sorted({sample.member for sample in samples if "/" in sample.member})
    refuse_splits(collector.root, {_folder_of(member) for member in members})
    return cameras_of(members, options.camera_pattern)


def _split(sample: Sample) -> Cell:
    split = _cell(sample, "split")
    if not is_missing(split):
        return split
    for name in reversed(sample.shard.split("/")):
        if found := _SHARD_SPLIT.match(name):
            return found[1].lower()
    return None
