"""Images in a tree of folders, told by their names: shared by the readers `folders` and `images`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from data.artifacts.digests import MEMO_FILE
from data.errors import DataError, RejectedRow
from data.readers.base import Collector, is_litter, join
from data.readers.manifest import NAMES
from data.readers.paths import PATH_DETAILS, PathGate
from data.sources import remote
from data.sources.address import is_remote

SUFFIXES: Final = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png",
                   ".pnm", ".ppm", ".tif", ".tiff", ".webp")  # fmt: skip
"""Endings of the names of images, in any case. The index decides which of these formats it can decode."""

_DETAILS: Final = {
    "hidden": "a folder whose name begins with a dot; rename it to use its images",
    "linked_folder": "a link to a folder, which is not followed; put the folder itself there",
    "not_an_image": "the name does not end like that of an image, such as .jpg, .png or .webp",
}
_TAR: Final = "a tar file; set data.reader=webdataset to read the images in it"


def image_files(collector: Collector) -> Iterator[str]:
    """Yield the paths of all images under the root, at any depth; `collector` rejects everything else.

    One row is rejected for each hidden folder, each link to a folder, and each file whose name does not end like that
    of an image. What file managers leave behind (`is_litter`), artifact stores and the manifest that `clip-scgi
    manifest` writes into the root are ignored. The order is that of the disk.
    """
    if is_remote(collector.root):
        yield from _image_objects(collector)
        return
    gate, pending = PathGate(collector.root), [""]
    while pending:
        for entry in _entries(collector, pending.pop()):
            path = entry.path[len(str(collector.root)) :].lstrip("/")
            if path in NAMES:  # a table of the same images
                continue
            reason = _refusal(entry)
            if reason:
                collector.reject(path, reason, _detail(path, reason))
            elif entry.is_dir(follow_symlinks=False):
                if not is_store(collector.root / path):
                    pending.append(path)
            else:
                try:
                    yield gate.admit(path)
                except RejectedRow as error:
                    collector.reject(path, error.reason, PATH_DETAILS[error.reason])


def _image_objects(collector: Collector) -> Iterator[str]:
    """Yield what `image_files` yields, for a root in an object store."""
    gate, hidden = PathGate(collector.root), set[str]()
    found = remote.listing(collector.root)
    stores = tuple(f"{path.rpartition('/')[0]}/" for path in found.named(MEMO_FILE))
    for path in found.paths:
        folders, name = path.split("/")[:-1], path.rpartition("/")[2]
        dotted = next((depth for depth, one in enumerate(folders) if one.startswith(".") and one != ".."), None)
        litter = any(is_litter(one) for one in (*(one for one in folders if not one.startswith(".")), name))
        if path in NAMES or litter or path.startswith(stores):
            continue
        if dotted is not None:
            hidden.add("/".join(folders[: dotted + 1]))
        elif not name.lower().endswith(SUFFIXES):
            collector.reject(path, "not_an_image", _detail(path, "not_an_image"))
        else:
            try:
                yield _admitted(gate, path)
            except RejectedRow as error:
                collector.reject(path, error.reason, PATH_DETAILS[error.reason])
    for folder in sorted(hidden):
        collector.reject(folder, "hidden", _DETAILS["hidden"])


def _detail(path: str, reason: str) -> str:
    return _TAR if reason == "not_an_image" and path.endswith(".tar") else _DETAILS[reason]


def _admitted(gate: PathGate, key: str) -> str:
    """Return the key of an object, unless it is not a path: a/b, a//b and a/./b are different objects."""
    if "" in key.split("/") or "." in key.split("/"):
        raise RejectedRow("bad_path")
    return gate.admit(key)


def is_store(folder: Path) -> bool:
    """Return True if `folder` is an artifact store, which has pictures of people too; the default is ./artifacts."""
    return (folder / MEMO_FILE).exists()


def _entries(collector: Collector, folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder under the root without litter."""
    try:
        with os.scandir(collector.root / folder) as entries:
            yield from (entry for entry in entries if not is_litter(entry.name) or _is_hidden_folder(entry))
    except OSError as error:
        where = join(str(collector.root), folder)
        raise DataError(f"the folder {where} cannot be read ({error.strerror}); check its permissions") from error


def _is_hidden_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)


def _refusal(entry: os.DirEntry[str]) -> str:
    """Return the reason of `_DETAILS` why an entry is rejected by its name or kind, or ""."""
    if _is_hidden_folder(entry):
        return "hidden"
    if entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - `entry.is_dir` raises for a cycle of links
        return "linked_folder"
    if entry.is_dir(follow_symlinks=False) or entry.name.lower().endswith(SUFFIXES):
        return ""
    return "not_an_image"
