"""A folder per person: ``root/<label>/**/image``, with any text as label."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from data.errors import DataError
from data.people import UNKNOWN_CAMERA
from data.process.bounded import TimeLimitError
from data.process.pattern_search import first_groups
from data.readers.base import Collector, Scan, existing_folder, is_litter, number_cameras, number_labels, printable
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
SECONDS: Final = 10
"""Processor time in which the pattern of the cameras has to be searched in all paths."""


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
    paths = [path for path in image_files(collector) if _has_folder(collector, path)]
    labels = {path: unicodedata.normalize("NFC", path.partition("/")[0]) for path in paths}
    _refuse_splits(collector.root, set(labels.values()))
    collector.notices += [*_merged(labels), *_empty(collector.root, paths)]
    pids, cameras = number_labels(labels.values()), _cameras(paths, camera_pattern)
    for path in paths:
        collector.add(path, GALLERY, pids[labels[path]], cameras[path], labels[path])
    return collector.finish()


def _has_folder(collector: Collector, path: str) -> bool:
    """Return True if `path` is not in the root itself; reject it otherwise."""
    if "/" in path:
        return True
    detail = "an image in data.root itself; move it to a folder named after its person, or set data.reader=images"
    collector.reject(path, "no_label", detail)
    return False


def _refuse_splits(root: Path, labels: set[str]) -> None:
    if labels and all(label.lower() in _NOT_PEOPLE for label in labels):
        shown = ", ".join(sorted(labels))
        raise DataError(
            f"the folders in {root} are splits ({shown}), but the reader folders takes each of them for one person. Set"
            f" data.reader to one that knows this layout, such as data.reader=market1501, or set data.root to a folder"
            " that contains one folder per person"
        )


def _merged(labels: Mapping[str, str]) -> list[str]:
    """Return a notice about folders whose names differ only in their Unicode form."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for path, label in labels.items():
        names[label].add(path.partition("/")[0])
    twice = sorted(label for label, found in names.items() if len(found) > 1)
    if not twice:
        return []
    return [
        f"{len(twice)} label(s) have more than one folder, such as {twice[0]}: the names differ only in their Unicode"
        " form (NFC, NFD). They are read as one identity"
    ]


def _empty(root: Path, paths: Sequence[str]) -> list[str]:
    """Return a notice about folders of people without an image."""
    used = {path.partition("/")[0] for path in paths}
    if is_remote(root):  # a store does not have empty folders
        return []
    found = (
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink() and not is_store(entry)
    )
    empty = sorted(printable(name) for name in found if name not in used and not is_litter(name))
    if not empty:
        return []
    return [f"{len(empty)} folder(s) do not contain an image, such as {empty[0]}"]


def _cameras(paths: Sequence[str], pattern: str) -> dict[str, int]:
    """Return path -> camera. Raises DataError unless `pattern` matches every path."""
    if not pattern:
        return dict.fromkeys(paths, UNKNOWN_CAMERA)
    try:
        found = first_groups(pattern, [unicodedata.normalize("NFC", path) for path in paths], seconds=SECONDS)
    except TimeLimitError as error:
        raise DataError(
            f"data.camera_pattern={pattern} is too slow for the image paths, such as {min(paths)}: {error}. Avoid "
            "a repetition inside a repetition, such as (a+)+; cam(\\d+) is fast"
        ) from error
    names = {path: name for path, name in zip(paths, found, strict=True) if name}
    lacking = sorted(set(paths) - names.keys())
    if lacking:
        share = f"{len(lacking):,} of the {len(paths):,}" if names else f"any of the {len(paths):,}"
        shown = ", ".join(lacking[:_SHOWN])
        raise DataError(
            f"data.camera_pattern={pattern} does not find a camera in {share} image paths, such as {shown}. Correct the"
            f" pattern, which is searched in the path relative to data.root ({_example(lacking[0])}), or set"
            ' data.camera_pattern="" if the cameras are unknown'
        )
    numbers = number_cameras(names.values())
    return {path: numbers[name] for path, name in names.items()}


def _example(path: str) -> str:
    """Return what the pattern cam(\\d+) finds in `path`, or in a path like it."""
    if match := re.search(r"cam(\d+)", path):
        return f"cam(\\d+) finds camera {match[1]} in {path}"
    folder, _, name = path.rpartition("/")
    return f"cam(\\d+) would find camera 3 if it were {folder}/cam3_{name}"
