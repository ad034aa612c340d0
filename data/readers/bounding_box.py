"""Datasets in the layout of Market-1501: bounding_box_train, bounding_box_test and query, labels in the file names.

Market-1501, CUHK03-NP, DukeMTMC-reID, Occluded-Duke and, with its own folder names, VeRi-776.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.readers.base import Collector, Counts, Scan, accepted_files, join, locate
from data.sources.places import is_dir
from data.splits import GALLERY, QUERY, TRAIN

_FOLDERS: Final = {TRAIN: "bounding_box_train", QUERY: "query", GALLERY: "bounding_box_test"}
_VERI_FOLDERS: Final = {TRAIN: "image_train", QUERY: "image_query", GALLERY: "image_test"}

WITHDRAWN: Final = (
    "DukeMTMC was withdrawn by Duke University in 2019 because people were filmed without consent;"
    " use it only to compare with published results"
)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Layout of a dataset. folders: split -> folder. pattern: of file names, with groups pid and cam. example: one."""

    folders: dict[str, str]
    pattern: re.Pattern[str]
    example: str
    published: dict[str, Counts]

    @property
    def sentence(self) -> str:
        """Description of the layout, for error messages."""
        return f"it needs the folders {', '.join(self.folders.values())}, with files such as {self.example}"


_EXTENSION: Final = r"(?:\.(?:jpg|jpeg|png|bmp))+\Z"  # some copies of Market-1501 have names such as x.jpg.jpg

# Published gallery of Market-1501: 19,732 files, of which 3,819 are junk (pid -1) and 2,798 distractors (pid 0).
_MARKET1501: Final = _Layout(
    folders=_FOLDERS,
    pattern=re.compile(r"(?P<pid>-1|\d+)_c(?P<cam>\d+)s\d+_\d+_\d+" + _EXTENSION, re.IGNORECASE | re.ASCII),
    example="0002_c1s1_000451_03.jpg",
    published={TRAIN: Counts(751, 12936), QUERY: Counts(750, 3368), GALLERY: Counts(750, 15913)},
)
_MARKET1501_JUNK: Final = 3819

_DUKE: Final = _Layout(
    folders=_FOLDERS,
    pattern=re.compile(r"(?P<pid>\d+)_c(?P<cam>\d+)_f\d+" + _EXTENSION, re.IGNORECASE | re.ASCII),
    example="0005_c2_f0046985.jpg",
    published={TRAIN: Counts(702, 16522), QUERY: Counts(702, 2228), GALLERY: Counts(1110, 17661)},
)
_OCCLUDED_DUKE: Final = _Layout(
    folders=_FOLDERS,
    pattern=_DUKE.pattern,
    example=_DUKE.example,
    # Counted from its lists; one public loader documents the counts of DukeMTMC-reID instead.
    published={TRAIN: Counts(702, 15618), QUERY: Counts(519, 2210), GALLERY: Counts(1110, 17661)},
)

_CUHK03_PATTERN: Final = re.compile(r"(?P<pid>\d+)_c(?P<cam>\d+)_\d+" + _EXTENSION, re.IGNORECASE | re.ASCII)
_CUHK03_NP: Final = {
    "labeled": _Layout(
        folders=_FOLDERS,
        pattern=_CUHK03_PATTERN,
        example="0001_c1_1.png",
        published={TRAIN: Counts(767, 7368), QUERY: Counts(700, 1400), GALLERY: Counts(700, 5328)},
    ),
    "detected": _Layout(
        folders=_FOLDERS,
        pattern=_CUHK03_PATTERN,
        example="0001_c1_1.png",
        published={TRAIN: Counts(767, 7365), QUERY: Counts(700, 1400), GALLERY: Counts(700, 5332)},
    ),
}

LABELED_NAME: Final = re.compile(
    r"(?P<pid>-1|\d+)_c(?P<cam>\d+)(?:s\d+)?(?:_f?\d+){1,2}" + _EXTENSION, re.IGNORECASE | re.ASCII
)
"""The names of all these datasets, such as 0002_c1s1_000451_03.jpg: identity and camera."""

_VERI776: Final = _Layout(
    folders=_VERI_FOLDERS,
    pattern=re.compile(r"(?P<pid>\d+)_c(?P<cam>\d+)_\d+_\d+" + _EXTENSION, re.IGNORECASE | re.ASCII),
    example="0002_c002_00030600_0.jpg",
    published={TRAIN: Counts(576, 37778), QUERY: Counts(200, 1678), GALLERY: Counts(200, 11579)},
)


def market1501(root: Path, *, keep_junk: bool) -> Scan:
    """Read Market-1501, or any dataset with its layout and file names.

    Junk (pid -1) is left out and counted unless `keep_junk` is set; distractors (0000) stay in the gallery with pid 0.
    Source: Zheng et al., "Scalable person re-identification: a benchmark", ICCV 2015.
    """
    version = "with junk" if keep_junk else "without junk"
    published = dict(_MARKET1501.published)
    if keep_junk:
        published[GALLERY] = Counts(750, published[GALLERY].images + _MARKET1501_JUNK)
    folder = _locate(root, _MARKET1501)
    return _read("market1501", folder, _MARKET1501, version, published=published, keep_junk=keep_junk)


def dukemtmc_reid(root: Path) -> Scan:
    """Read DukeMTMC-reID, with the notice that it was withdrawn. Source: Zheng et al., ICCV 2017."""
    return _read("dukemtmc_reid", _locate(root, _DUKE), _DUKE, "", notice=WITHDRAWN)


def occluded_duke(root: Path) -> Scan:
    """Read Occluded-Duke, with the notice that its photographs were withdrawn. Source: Miao et al., ICCV 2019."""
    return _read("occluded_duke", _locate(root, _OCCLUDED_DUKE), _OCCLUDED_DUKE, "", notice=WITHDRAWN)


def cuhk03_np(root: Path, *, version: str) -> Scan:
    """Read CUHK03 in its new protocol; `version`: labeled or detected (boxes drawn by hand or by a detector).

    `root` contains the two folders, or is one of them. Source: Zhong et al., CVPR 2017.
    """
    layout = _CUHK03_NP[version]
    base = locate(root, [version, *_FOLDERS.values()], f"it needs the folder {version}; there, {layout.sentence}")
    folder = base / version if is_dir(base / version) else base
    return _read("cuhk03_np", folder, layout, version)


def veri776(root: Path) -> Scan:
    """Read VeRi-776 (vehicles). Source: Liu et al., ECCV 2016."""
    return _read("veri776", _locate(root, _VERI776), _VERI776, "")


def _locate(root: Path, layout: _Layout) -> Path:
    return locate(root, layout.folders.values(), layout.sentence)


def _read(
    name: str,
    root: Path,
    layout: _Layout,
    version: str,
    *,
    published: dict[str, Counts] | None = None,
    notice: str = "",
    keep_junk: bool = False,
) -> Scan:
    collector = Collector(name=name, root=root, version=version, keep_junk=keep_junk)
    if notice:
        collector.notices.append(notice)
    for split, folder in layout.folders.items():
        for file_name in accepted_files(collector, folder):
            match = layout.pattern.match(file_name)
            if match is None:
                collector.reject(join(folder, file_name), "bad_name", f"expected a name such as {layout.example}")
            else:
                collector.add(join(folder, file_name), split, int(match["pid"]), int(match["cam"]))
    return collector.finish(published or layout.published)
