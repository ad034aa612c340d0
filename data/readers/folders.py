"""A folder per person: ``root/<label>/**/image``, with any text as label."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.records import Ints, order_of
from data.errors import DataError
from data.people import DISTRACTOR, UNKNOWN_CAMERA
from data.process.bounded import TimeLimitError
from data.process.pattern_search import first_groups
from data.readers.base import Collector, Scan, existing_folder, is_litter, number_cameras, number_labels
from data.readers.paths import printable
from data.readers.tree import image_files, is_store
from data.sources.address import is_remote
from data.splits import GALLERY

_NOT_PEOPLE: Final = frozenset(
    {
        *("train", "training", "val", "valid", "validation", "test", "testing", "query", "gallery"),
        *("bounding_box_train", "bounding_box_test", "gt_bbox", "gt_query"),
        *("image_train", "image_query", "image_test"),
    }
)
_SHOWN: Final = 3
_AT_ONCE: Final = 1 << 18
SECONDS: Final = 10
"""Processor time in which the pattern of the cameras has to be searched in `_AT_ONCE` paths."""


def folders(root: Path, *, camera_pattern: str) -> Scan:
    """Read a folder per person; all images are in the gallery until the identities are split by rule.

    The label of an image is the name of its topmost folder under `root`, in Unicode's composed form (NFC), so that
    copies of a dataset on different file systems have the same labels. Identities are the labels in sorted order,
    numbered from 1. camera_pattern: regular expression with one group, searched in each path relative to `root`; what
    the group matches names the camera. Empty: the cameras are unknown.

    Rejected besides what `image_files` rejects: ``no_label``, an image in `root` itself. Raises DataError if the
    folders are splits instead of people, or if the pattern does not match every path.
    """
    collector = Collector(name="folders", root=existing_folder(root), version="")
    for path in image_files(collector):
        if _has_folder(collector, path):
            collector.add(path, GALLERY, DISTRACTOR, UNKNOWN_CAMERA, path.partition("/")[0])
    found = collector.records.build()
    labels = [unicodedata.normalize("NFC", name) for name in found.texts if name]
    refuse_splits(collector.root, set(labels))
    collector.notices += [*_merged(labels), *_empty(collector.root, found.texts)]
    texts = ["", *dict.fromkeys(labels)]
    label_of = _places(texts, ["", *labels])[found.labels]
    pids = number_labels(labels)
    records = replace(
        found,
        pids=np.array([pids.get(text, DISTRACTOR) for text in texts], dtype=np.int64)[label_of],
        camids=cameras_of(found.paths, camera_pattern),
        labels=label_of,
        texts=texts,
    )
    return collector.scan(records.in_order())


def _places(texts: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int32]:
    """Return the place of each of `wanted` among the distinct `texts`."""
    places = {text: place for place, text in enumerate(texts)}
    return np.array([places[text] for text in wanted], dtype=np.int32)


def _has_folder(collector: Collector, path: str) -> bool:
    """Return True if `path` is not in the root itself; reject it otherwise."""
    if "/" in path:
        return True
    detail = "an image in data.root itself; move it to a folder named after its person, or set data.reader=images"
    collector.reject(path, "no_label", detail)
    return False


def refuse_splits(root: Path, labels: set[str]) -> None:
    """Raise DataError if all labels, the names of the folders in `root`, are those of splits."""
    if labels and all(label.lower() in _NOT_PEOPLE for label in labels):
        shown = ", ".join(sorted(labels))
        raise DataError(
            f"the folders in {root} are splits ({shown}), but the reader folders takes each of them for one person. Set"
            f" data.reader to one that knows this layout, such as data.reader=market1501, or set data.root to a folder"
            " that contains one folder per person"
        )


def _merged(labels: Sequence[str]) -> list[str]:
    """Return a notice about folders whose names, and so their `labels`, differ only in their Unicode form."""
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if not twice:
        return []
    return [
        f"{len(twice)} label(s) have more than one folder, such as {twice[0]}: the names differ only in their Unicode"
        " form (NFC, NFD). They are read as one identity"
    ]


def _empty(root: Path, names: Sequence[str]) -> list[str]:
    """Return a notice about folders of people without an image. names: of the folders with images."""
    used = set(names)
    if is_remote(root):  # a store does not have empty folders
        return []
    found = (
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink() and not is_store(entry)
    )
    empty = sorted(printable(name) for name in found if name not in used and not is_litter(name))
    if not empty:
        return []
    return [f"{len(empty)} folder(s) do not contain an image, such as {empty[0]}"]


def cameras_of(paths: pa.Array, pattern: str) -> Ints:
    """Return the camera of each path. Raises DataError unless `pattern` matches every path."""
    if not pattern:
        return np.full(len(paths), UNKNOWN_CAMERA, dtype=np.int64)
    codes, names = _camera_names(paths, pattern)
    lacking = paths.filter(pa.array(codes < 0))
    if len(lacking):
        share = f"{len(lacking):,} of the {len(paths):,}" if names else f"any of the {len(paths):,}"
        first = [str(path) for path in lacking.take(pa.array(order_of(lacking)[:_SHOWN])).to_pylist()]
        raise DataError(
            f"data.camera_pattern={pattern} does not find a camera in {share} image paths, such as {', '.join(first)}."
            f" Correct the pattern, which is searched in the path relative to data.root ({_example(first[0])}), or set"
            ' data.camera_pattern="" if the cameras are unknown'
        )
    numbers = number_cameras(names)
    cameras: Ints = np.array([numbers[name] for name in names], dtype=np.int64)[codes]
    return cameras


def _camera_names(paths: pa.Array, pattern: str) -> tuple[NDArray[np.int32], list[str]]:
    """Return the place of the name of each path's camera, -1 without one, and the names."""
    codes, names = np.full(len(paths), -1, dtype=np.int32), dict[str, int]()
    for start in range(0, len(paths), _AT_ONCE):
        texts = [unicodedata.normalize("NFC", path) for path in paths.slice(start, _AT_ONCE).to_pylist()]
        try:
            found = first_groups(pattern, texts, seconds=SECONDS)
        except TimeLimitError as error:
            first = paths[order_of(paths)[0]].as_py()
            raise DataError(
                f"data.camera_pattern={pattern} is too slow for the image paths, such as {first}: {error}. Avoid a"
                " repetition inside a repetition, such as (a+)+; cam(\\d+) is fast"
            ) from error
        for row, name in enumerate(found, start=start):
            if name:
                codes[row] = names.setdefault(name, len(names))
    return codes, list(names)


def _example(path: str) -> str:
    """Return what the pattern cam(\\d+) finds in `path`, or in a path like it."""
    if match := re.search(r"cam(\d+)", path):
        return f"cam(\\d+) finds camera {match[1]} in {path}"
    folder, _, name = path.rpartition("/")
    return f"cam(\\d+) would find camera 3 if it were {folder}/cam3_{name}"
