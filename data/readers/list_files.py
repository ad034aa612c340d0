"""Datasets with labels in list files: MSMT17 and VehicleID.

The lists are untrusted, so their paths get the same check as those of a manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from data.errors import DataError, RejectedRow
from data.readers.base import Collector, Counts, Scan, locate
from data.readers.paths import PATH_DETAILS, PathGate
from data.sources.places import is_dir, open_text
from data.splits import GALLERY, QUERY, TRAIN

_MSMT17_LISTS: Final = {
    "list_train.txt": TRAIN,
    "list_val.txt": TRAIN,
    "list_query.txt": QUERY,
    "list_gallery.txt": GALLERY,
}
_MSMT17_FOLDERS: Final = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
_MSMT17_TEST: Final = {QUERY: Counts(3060, 11659), GALLERY: Counts(3060, 82161)}
_MSMT17_TRAIN: Final = Counts(1041, 32621)  # list_train and list_val together
# Both halves of MSMT17 number their identities from 0; shifted to be positive (0 is a distractor) and distinct.
_MSMT17_TRAIN_BASE: Final = 1
_MSMT17_TEST_BASE: Final = 10_001

# Training identities and images, then test images per size of the test list, as documented in fast-reid.
_VEHICLEID_TRAIN: Final = Counts(13164, 113346)
_VEHICLEID_TEST: Final = {"800": 6493, "1600": 13377, "2400": 19777}
_MOST_DIGITS: Final = 18  # any number of so many digits fits 64 bits


class _Line(NamedTuple):
    where: str  # file and line number
    path: str
    pid: int


def msmt17(root: Path, *, version: str, include_val: bool) -> Scan:
    """Read MSMT17; `version`: v1, v2 (faces blurred) or "" for whichever exists.

    include_val: train on list_train and list_val, as CLIP-ReID does, or on list_train alone, as torchreid does.
    Training identities are numbered from 1, test identities from 10001. Source: Wei et al., CVPR 2018.
    """
    base = locate(root, _MSMT17_LISTS, f"it needs {', '.join(_MSMT17_LISTS)} and the folders train and test")
    edition = version or _msmt17_edition(base)
    folders = dict(zip((TRAIN, QUERY), _MSMT17_FOLDERS[edition], strict=True))
    split_name = "train+val" if include_val else "train"
    collector = Collector(name="msmt17", root=base, version=f"{edition} {split_name}")
    gate = PathGate(base)
    for list_name, split in _MSMT17_LISTS.items():
        if list_name == "list_val.txt" and not include_val:
            continue
        folder = folders[TRAIN] if split == TRAIN else folders[QUERY]
        first = _MSMT17_TRAIN_BASE if split == TRAIN else _MSMT17_TEST_BASE
        for line in _read_list(collector, list_name):
            path = _admitted(collector, gate, f"{folder}/{line.path}", line.where)
            camid = msmt17_camera(line.path)
            if path is not None and camid is None:
                collector.reject(path, "bad_name", f"{line.where}: expected 0000_000_01_0303morning_0015_0.jpg")
            elif path is not None and camid is not None:
                collector.add(path, split, line.pid + first, camid)
    published = {TRAIN: _MSMT17_TRAIN, **_MSMT17_TEST} if include_val else _MSMT17_TEST
    return collector.finish(published)


def _msmt17_edition(base: Path) -> str:
    found = [edition for edition, names in _MSMT17_FOLDERS.items() if any(is_dir(base / name) for name in names)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{base} contains both editions of MSMT17; set data.version=v1 or data.version=v2")
    raise DataError(
        f"{base} contains the lists of MSMT17 but not its images: put the folders train and test (v1) or mask_train_v2"
        " and mask_test_v2 (v2) there"
    )


def msmt17_camera(path: str) -> int | None:
    """Return the third field of a name such as 0000_000_01_0303morning_0015_0.jpg."""
    fields = path.rpartition("/")[2].split("_")
    return int(fields[2]) if len(fields) > 3 and _is_number(fields[2]) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS


def vehicleid(root: Path, *, version: str, split_seed: int) -> Scan:
    """Read VehicleID with the test list of `version` 800, 1600 or 2400 identities.

    One image per identity, drawn with `split_seed`, is the gallery; the others are queries. This is one of many
    possible splits: evaluation draws ten from the same images, as the protocol demands. The dataset has no camera
    labels, so queries get camera 0 and gallery images camera 1, and no match is dropped for sharing a camera.

    Source: Liu et al., CVPR 2016.
    """
    lists = ("train_list.txt", f"test_list_{version}.txt")
    sentence = f"it needs the folders image and train_test_split, with {lists[0]} and {lists[1]} in the latter"
    base = locate(root, ["train_test_split"], sentence)
    collector = Collector(name="vehicleid", root=base, version=f"test {version} split_seed={split_seed}")
    gate = PathGate(base)
    for line in _read_list(collector, f"train_test_split/{lists[0]}"):
        path = _admitted(collector, gate, f"image/{line.path}.jpg", line.where)
        if path is not None:
            collector.add(path, TRAIN, line.pid, 0)
    _draw_gallery(collector, gate, f"train_test_split/{lists[1]}", split_seed)
    identities = int(version)
    test = {
        QUERY: Counts(identities, _VEHICLEID_TEST[version] - identities),
        GALLERY: Counts(identities, identities),
    }
    return collector.finish({TRAIN: _VEHICLEID_TRAIN, **test})


def _draw_gallery(collector: Collector, gate: PathGate, list_name: str, seed: int) -> None:
    by_pid: dict[int, set[str]] = {}
    for line in _read_list(collector, list_name):
        path = _admitted(collector, gate, f"image/{line.path}.jpg", line.where)
        if path is not None:
            by_pid.setdefault(line.pid, set()).add(path)
    generator = np.random.default_rng(seed)
    for pid in sorted(by_pid):
        paths = sorted(by_pid[pid])
        drawn = paths[int(generator.integers(len(paths)))]
        for path in paths:
            collector.add(path, GALLERY if path == drawn else QUERY, pid, 1 if path == drawn else 0)


def _admitted(collector: Collector, gate: PathGate, relative: str, where: str) -> str | None:
    try:
        return gate.admit(relative)
    except RejectedRow as error:
        collector.reject(relative, error.reason, f"{where}: {PATH_DETAILS[error.reason]}")
        return None


def _read_list(collector: Collector, name: str) -> Iterator[_Line]:
    """Yield the lines "path identity" of one list file; `collector` rejects malformed lines."""
    try:
        stream = open_text(collector.root / name, encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        collector.notices.append(f"the list {name} of {collector.name} does not exist")
        return
    except OSError as error:
        raise DataError(f"{collector.root / name} cannot be read ({error.strerror}); check its permissions") from error
    with stream:
        for number, text in enumerate(stream, start=1):
            fields = text.split()
            if not fields:
                continue
            if len(fields) != 2 or not _is_number(fields[1]):
                collector.reject(fields[0], "bad_row", f"{name} line {number}: expected a path and an identity")
                continue
            yield _Line(f"{name} line {number}", fields[0], int(fields[1]))
