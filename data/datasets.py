"""The data sets this project reads: one config, and two functions that turn it into image records.

>>> records = load_dataset("market1501", "/data/Market-1501-v15.09.15")  # doctest: +SKIP
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from data.config import Config, RuntimeInt, RuntimeStr, build_config
from data.errors import ConfigError, raise_settings
from data.images.decode import MAX_PIXELS, MOST_PIXELS
from data.readers import bounding_box, list_files, manifest, pku_reid
from data.readers.base import ImageRecord, Rejected, Scan
from data.splits import SPLITS, SplitName

__all__ = ["DatasetConfig", "ImageRecord", "Reader", "Rejected", "Scan", "load_dataset", "scan_dataset"]

_LOG = logging.getLogger(__name__)

Reader = Literal[
    "market1501",
    "pku_reid",
    "manifest",
    "msmt17",
    "cuhk03_np",
    "dukemtmc_reid",
    "occluded_duke",
    "veri776",
    "vehicleid",
]

_VERSIONS: Final[dict[str, tuple[str, ...]]] = {
    "msmt17": ("v1", "v2"),  # "": whichever is there
    "cuhk03_np": ("labeled", "detected"),
    "vehicleid": ("800", "1600", "2400"),
}
# Which readers an option means something to; set to something else than its default elsewhere, it is a mistake.
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "version": tuple(_VERSIONS),
    "manifest": ("manifest",),
    "split_seed": ("pku_reid", "vehicleid"),
    "train_fraction": ("pku_reid",),
    "include_val": ("msmt17",),
    "keep_junk": ("market1501", "manifest"),
}


class DatasetConfig(Config):
    """Which images to use, and how their folder is to be understood."""

    name: str = Field(default="", max_length=100)
    """What people see this data set called in tables and reports; empty: the name of the reader."""
    reader: Reader = "market1501"
    """How the folder is laid out. `manifest`: any set with a Parquet or CSV file of path, split, pid and camid."""
    root: RuntimeStr = ""
    """The data set's folder, or the folder that holds it."""
    manifest: RuntimeStr = ""
    """manifest: the Parquet or CSV file; empty: manifest.parquet or manifest.csv in the root, or the root itself."""
    version: str = ""
    """msmt17: v1 or v2, empty: whichever is there. cuhk03_np: labeled (default) or detected. vehicleid: size of the
    test list in identities, 800 (default), 1600 or 2400."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the identity split (pku_reid) or of the drawn gallery (vehicleid)."""
    train_fraction: float = Field(default=0.5, gt=0, lt=1)
    """pku_reid: share of the identities that train; the others are the test."""
    include_val: bool = True
    """msmt17: train on list_train and list_val, as CLIP-ReID does, or on list_train alone, as torchreid does."""
    keep_junk: bool = False
    """Keep images with identity -1, which no measure counts; captioning them is wasted time."""
    require_splits: tuple[SplitName, ...] = SPLITS
    """Splits that must not be empty. All three to train and evaluate; none to caption a folder only."""
    allow_identical: bool = False
    """Only warn, instead of stopping, when one and the same file has two identities."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MOST_PIXELS)
    """Images with more pixels (width x height) are rejected as too_large before they are decoded."""
    min_side: int = Field(default=8, ge=1)
    """Images with a shorter side than this, in pixels, are rejected as too_small: no person can be described in them,
    and yet a captioner would."""
    max_aspect: float = Field(default=10, ge=1)
    """Images whose longer side is more than this many times the shorter one are rejected as bad_aspect: slivers, not
    crops of a person (who is three to four times as tall as wide)."""
    workers: Annotated[RuntimeInt, Field(ge=0, le=256)] = 0
    """Threads that read and check images; 0: as many as there are CPU cores, at most 8."""

    @property
    def label(self) -> str:
        """What to call this data set: the name, or the reader's."""
        return self.name or self.reader

    @model_validator(mode="after")
    def _options_fit_the_reader(self) -> Self:
        fields = type(self).model_fields
        problems = [
            (option, f"means nothing to the reader {self.reader}, only to {', '.join(readers)}; leave it out")
            for option, readers in _OPTIONS.items()
            if self.reader not in readers and getattr(self, option) != fields[option].default
        ]
        known = _VERSIONS.get(self.reader, ())
        if known and self.version and self.version not in known:
            told = f"{self.version!r} is not an edition of {self.reader}; set {{at}}version={known[0]}"
            problems.append(("version", told + f" (editions: {', '.join(known)})"))
        raise_settings(problems)
        return self


def load_dataset(name: str, root: str | Path, **options: Any) -> list[ImageRecord]:
    """Return the images of the data set that reader `name` finds at `root`, sorted by (split, path).

    options: further fields of `DatasetConfig`, such as version or split_seed. Notices and the number of rejected
    files go to the log. No image is opened: `data.index.stage` does that.
    """
    config = build_config(DatasetConfig, {"reader": name, "root": str(root), **options}, "load_dataset")
    scan = scan_dataset(config)
    for notice in scan.notices:
        _LOG.warning("%s", notice)
    if scan.rejected:
        _LOG.warning("%d files or rows of %s are not used, such as %s", len(scan.rejected), root, scan.rejected[0])
    return scan.records


def scan_dataset(config: DatasetConfig) -> Scan:
    """List and parse the data set of `config`; raises DataError when its folder cannot be such a set."""
    if not config.root:
        raise ConfigError(f"the data set {config.label} has no folder yet; set data.root to it")
    root = Path(config.root)
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
        case "manifest":
            scan = manifest.manifest(root, manifest=config.manifest, keep_junk=config.keep_junk)
    return scan
