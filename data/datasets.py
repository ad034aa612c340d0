"""The supported datasets: their config, and the functions that turn it into image records.

>>> records = load_dataset("market1501", "/data/Market-1501-v15.09.15")  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from data.columns.records import ImageRecord
from data.columns.rejected import Rejected
from data.config import SECRET, Config, RuntimeInt, RuntimeStr, build_config
from data.errors import ConfigError, raise_settings
from data.images.decode import MAX_PIXELS, MOST_PIXELS
from data.people import UNKNOWN_CAMERA
from data.readers import bounding_box, folders, images, list_files, manifest, pku_reid
from data.readers.base import Scan
from data.readers.split_rule import split_by_identity
from data.readers.text_search.reader import text_search
from data.readers.webdataset.reader import webdataset
from data.readers.webdataset.rows import LabelRule, ShardOptions
from data.readers.webdataset.samples import Fields
from data.readers.webdataset.tables import ShardReading
from data.sources.address import address_problem, is_listed
from data.sources.remote import unlisted
from data.splits import SPLITS, SplitName

__all__ = ["DatasetConfig", "ImageRecord", "Reader", "Rejected", "Scan", "load_dataset", "scan_dataset"]

SplitRule = Literal["auto", "by_identity"]

_LOG = logging.getLogger(__name__)

Reader = Literal[
    "market1501",
    "pku_reid",
    "manifest",
    "folders",
    "images",
    "msmt17",
    "cuhk03_np",
    "dukemtmc_reid",
    "occluded_duke",
    "veri776",
    "vehicleid",
    "cuhk_pedes",
    "icfg_pedes",
    "rstpreid",
    "webdataset",
]

_PATTERN_EXAMPLE: Final = r"data.camera_pattern=cam(\d+)"
_VERSIONS: Final[dict[str, tuple[str, ...]]] = {
    "msmt17": ("v1", "v2"),  # default: whichever exists
    "cuhk03_np": ("labeled", "detected"),
    "vehicleid": ("800", "1600", "2400"),
}
# Option -> readers that use it. A value other than the default with any other reader is an error, unless
# data.split=by_identity uses it.
_FIELDS: Final = ("pid_field", "camid_field", "split_field", "sentences_field")
_SPLIT_OPTIONS: Final = ("split_seed", "train_fraction")
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "version": tuple(_VERSIONS),
    "manifest": ("manifest",),
    "split_seed": ("pku_reid", "vehicleid", "folders"),
    "train_fraction": ("pku_reid", "folders"),
    "camera_pattern": ("folders", "webdataset"),
    "include_val": ("msmt17",),
    "keep_junk": ("market1501", "manifest", "webdataset"),
    **dict.fromkeys(("shards", "labels", *_FIELDS), ("webdataset",)),
}


class DatasetConfig(Config):
    """Which images to use, and how to read their folder."""

    name: str = Field(default="", max_length=100)
    """Name of this dataset in tables and reports; empty: the name of the reader."""
    reader: Reader = "market1501"
    """Layout of the folder. `folders`: one folder per person. `images`: just images, to caption and to search.
    `manifest`: any dataset with a Parquet or CSV file of path, split, pid (a number or text) and, if known, camid.
    `webdataset`: tar shards of samples such as 0001.jpg and 0001.json."""
    root: RuntimeStr = ""
    """The dataset's folder, or the folder that contains it; also an address such as s3://bucket/folder."""
    manifest: RuntimeStr = ""
    """manifest: the Parquet or CSV file, or a folder of Parquet files; empty: manifest.parquet, manifest.csv or
    manifest.tsv in the root, or the root itself."""
    shards: RuntimeStr = ""
    """webdataset: paths of the shards relative to the root, with braces and wildcards, such as
    train-{000000..000099}.tar; empty: every file that ends in .tar."""
    labels: LabelRule = "fields"
    """webdataset: where labels come from. fields: the fields below. names: the names of the images, such as
    0002_c1s1_000451_03.jpg. folders: the topmost folder in the shard is the person. none: there are none."""
    pid_field: str = Field(default=Fields().pid, min_length=1)
    """webdataset: the field with the identity, a number or text: a key of the sample's json member, or the ending of
    another member, such as cls."""
    camid_field: str = Field(default=Fields().camid, min_length=1)
    """webdataset: the field with the camera. If no sample has it, the cameras are unknown."""
    split_field: str = Field(default=Fields().split, min_length=1)
    """webdataset: the field with train, query or gallery. Without it, the name of the shard, or else of its folder,
    begins with the split."""
    sentences_field: str = Field(default=Fields().sentences, min_length=1)
    """webdataset: the field with descriptions of the person, one sentence or a list."""
    version: str = ""
    """msmt17: v1 or v2, empty: whichever exists. cuhk03_np: labeled (default) or detected. vehicleid: size of the test
    list in identities, 800 (default), 1600 or 2400."""
    camera_pattern: str = ""
    """folders, and webdataset with labels=folders: regular expression with one group, searched in the path of each
    image; the group is the camera, such as `cam(\\d+)` for Alice/cam2_001.jpg. Empty: the cameras are unknown."""
    split: SplitRule = "auto"
    """auto: the reader's own split; by_identity for folders, which has none. by_identity: for any reader, draw the
    training identities, and one query per test identity and camera."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the identity split (by_identity, pku_reid) or of the drawn gallery (vehicleid)."""
    train_fraction: float = Field(default=0.5, ge=0, le=1)
    """by_identity, pku_reid: share of the identities in the train split; the others are query and gallery. With
    by_identity, 0 leaves no identity to train, and 1 none to test."""
    include_val: bool = True
    """msmt17: train on list_train and list_val, as CLIP-ReID does, or on list_train alone, as torchreid does."""
    keep_junk: bool = False
    """Keep images with identity -1. No metric counts them, so captioning them wastes time."""
    require_splits: tuple[SplitName, ...] = ()
    """Splits that must not be empty. Without any, each stage checks what it needs before it runs."""
    allow_identical: bool = False
    """Warn, instead of stopping, if identical files have different identities."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """Images with more pixels (width x height) are rejected as too_large before they are decoded."""
    min_side: int = Field(default=8, ge=1)
    """Images with a side shorter than this, in pixels, are rejected as too_small: they cannot show a person, but a
    captioner would still describe one."""
    max_aspect: float = Field(default=10, ge=1)
    """Images whose longer side is more than this many times the shorter one are rejected as bad_aspect: slivers, not
    crops of a person, who is three to four times as tall as wide."""
    workers: Annotated[RuntimeInt, Field(ge=0, le=256)] = 0
    """Threads that read and check images; 0: one per CPU core, at most 8."""

    @property
    def label(self) -> str:
        """Name to show: `name`, or else the reader's."""
        return self.name or self.reader

    @property
    def has_identities(self) -> bool:
        """True if the images can have identities, so that a model can be trained and evaluated."""
        return self.reader != "images" and self.labels != "none"

    @property
    def splits_by_rule(self) -> bool:
        """True if the splits are assigned by `data.readers.split_rule` instead of the reader."""
        return self.split == "by_identity" or self.reader == "folders"

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change an index, as earlier versions did for configs that they knew."""
        fields = super().identity()
        for name in ("split", "camera_pattern", "labels", *_FIELDS):
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return fields | {"require_splits": fields["require_splits"] or list(SPLITS)}

    @field_validator("root", "manifest")
    @classmethod
    def _address_is_usable(cls, text: str) -> str:
        if problem := address_problem(text):
            raise PydanticCustomError("bad_address", "{problem}", {"problem": problem, SECRET: True})
        return text

    @field_validator("camera_pattern")
    @classmethod
    def _pattern_has_one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups if pattern else 1
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is not a regular expression ({error}); for example {_PATTERN_EXAMPLE}") from error
        if groups != 1:
            raise ValueError(
                f"has {groups} groups, but needs exactly one, which matches the camera; for example {_PATTERN_EXAMPLE}"
            )
        return pattern

    @model_validator(mode="after")
    def _options_fit_the_reader(self) -> Self:
        problems = [*self._unused_options(), *self._split_problems(), *self._label_problems()]
        known = _VERSIONS.get(self.reader, ())
        if known and self.version and self.version not in known:
            hint = f"set {{at}}version to one of {', '.join(known)}, such as {{at}}version={known[0]}"
            problems.append(("version", f"{self.version!r} is not an edition of {self.reader}; {hint}"))
        raise_settings(problems)
        return self

    def _unused_options(self) -> Iterator[tuple[str, str]]:
        fields = type(self).model_fields
        for option, readers in _OPTIONS.items():
            by_rule = option in _SPLIT_OPTIONS
            used = self.reader in readers or (by_rule and self.splits_by_rule)
            if not used and getattr(self, option) != fields[option].default:
                others = " or {at}split=by_identity" if by_rule and self.has_identities else ""
                yield (
                    option,
                    f"has no effect with the reader {self.reader}, only with {', '.join(readers)}{others}; remove it",
                )

    def _label_problems(self) -> Iterator[tuple[str, str]]:
        if self.reader != "webdataset":
            return
        fields = dict(zip(_FIELDS, (("fields",), ("fields",), ("fields", "names", "folders")), strict=False))
        used = {**fields, "camera_pattern": ("folders",)}
        for option, rules in used.items():
            if self.labels not in rules and getattr(self, option) != type(self).model_fields[option].default:
                yield (
                    option,
                    f"has no effect with {{at}}labels={self.labels}, only with {', '.join(rules)}; remove it",
                )

    def _split_problems(self) -> Iterator[tuple[str, str]]:
        if self.split == "by_identity" and not self.has_identities:
            source = f"the reader {self.reader}" if self.reader == "images" else "{at}labels=none"
            remedy = "{at}reader=folders for a folder per person" if self.reader == "images" else "{at}labels=fields"
            yield "split", f"{source} does not know identities to split; set {remedy}, or remove it"
        if self.reader == "pku_reid" and not self.splits_by_rule and self.train_fraction in (0, 1):
            yield (
                "train_fraction",
                "the split of pku_reid leaves identities on either side; set {at}split=by_identity as well, or"
                " {at}train_fraction=0.5",
            )


def load_dataset(name: str, root: str | Path, **options: Any) -> list[ImageRecord]:
    """Return the images that the reader `name` finds at `root`, sorted by (split, path).

    options: other fields of `DatasetConfig`, such as version or split_seed. Notices and the number of rejected files
    are logged. Images are not opened; `data.index.stage` does that.
    """
    config = build_config(DatasetConfig, {"reader": name, "root": str(root), **options}, "load_dataset")
    scan = scan_dataset(config)
    for notice in scan.notices:
        _LOG.warning("%s", notice)
    if scan.rejected:
        _LOG.warning("%d files or rows of %s are not used, such as %s", len(scan.rejected), root, scan.rejected[0])
    return list(scan.records)


def scan_dataset(config: DatasetConfig) -> Scan:
    """Return the images that the config's reader finds, with their splits.

    Raises DataError if the folder does not have the layout of the reader.
    """
    return assign_splits(config, read_dataset(config))


def assign_splits(config: DatasetConfig, scan: Scan) -> Scan:
    """Return `scan` with the splits that `config` asks for: the reader's own, or new ones by rule."""
    if not config.splits_by_rule:
        return scan
    return split_by_identity(scan, seed=config.split_seed, train_fraction=config.train_fraction)


def read_dataset(config: DatasetConfig, reading: ShardReading | None = None) -> Scan:
    """Return the images that the config's reader finds, with the reader's own splits.

    The index assigns splits by rule later, among usable images only. reading: how tar shards are read.
    """
    if not config.root:
        raise ConfigError(
            f"data.root is empty; set data.root to the folder of the dataset {config.label}, such as"
            f" data.root=/data/{config.reader}"
        )
    if config.reader == "webdataset":
        return _read_shards(config, reading or ShardReading())
    if config.reader != "manifest" and not is_listed(config.root):
        raise unlisted(Path(config.root))
    scan = _read(config, Path(config.root))
    if config.reader == "vehicleid" and config.splits_by_rule:  # its cameras only tell queries from the gallery
        unknown = np.full_like(scan.records.camids, UNKNOWN_CAMERA)
        return replace(scan, records=replace(scan.records, camids=unknown))
    return scan


def _read_shards(config: DatasetConfig, reading: ShardReading) -> Scan:
    fields = Fields(*(getattr(config, name) for name in _FIELDS))
    options = ShardOptions(
        shards=config.shards, labels=config.labels, fields=fields, camera_pattern=config.camera_pattern
    )
    return webdataset(
        Path(config.root),
        options=options,
        keep_junk=config.keep_junk,
        by_rule=config.splits_by_rule,
        reading=reading,
    )


def _read(config: DatasetConfig, root: Path) -> Scan:
    match config.reader:
        case "market1501":
            scan = bounding_box.market1501(root, keep_junk=config.keep_junk)
        case "dukemtmc_reid":
            scan = bounding_box.dukemtmc_reid(root)
        case "occluded_duke":
            scan = bounding_box.occluded_duke(root)
        case "cuhk03_np":
            scan = bounding_box.cuhk03_np(root, version=config.version or "labeled")
        case "veri776":
            scan = bounding_box.veri776(root)
        case "pku_reid":
            scan = pku_reid.pku_reid(root, split_seed=config.split_seed, train_fraction=config.train_fraction)
        case "msmt17":
            scan = list_files.msmt17(root, version=config.version, include_val=config.include_val)
        case "vehicleid":
            scan = list_files.vehicleid(root, version=config.version or "800", split_seed=config.split_seed)
        case "cuhk_pedes" | "icfg_pedes" | "rstpreid":
            scan = text_search(root, name=config.reader, by_rule=config.splits_by_rule)
        case "folders":
            scan = folders.folders(root, camera_pattern=config.camera_pattern)
        case "images":
            scan = images.images(root)
        case "manifest":
            scan = manifest.manifest(
                root, manifest=config.manifest, keep_junk=config.keep_junk, by_rule=config.splits_by_rule
            )
    return scan
