"""The supported datasets: their config, and the functions that turn it into image records.

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
    "msmt17": ("v1", "v2"),  # default: whichever exists
    "cuhk03_np": ("labeled", "detected"),
    "vehicleid": ("800", "1600", "2400"),
}
# Option -> readers that use it. A value other than the default with any other reader is an error.
_OPTIONS: Final[dict[str, tuple[str, ...]]] = {
    "version": tuple(_VERSIONS),
    "manifest": ("manifest",),
    "split_seed": ("pku_reid", "vehicleid"),
    "train_fraction": ("pku_reid",),
    "include_val": ("msmt17",),
    "keep_junk": ("market1501", "manifest"),
}


class DatasetConfig(Config):
    """Which images to use, and how to read their folder."""

    name: str = Field(default="", max_length=100)
    """Name of this dataset in tables and reports; empty: the name of the reader."""
    reader: Reader = "market1501"
    """Layout of the folder. `manifest`: any dataset with a Parquet or CSV file of path, split, pid and camid."""
    root: RuntimeStr = ""
    """The dataset's folder, or the folder that contains it."""
    manifest: RuntimeStr = ""
    """manifest: the Parquet or CSV file; empty: manifest.parquet or manifest.csv in the root, or the root itself."""
    version: str = ""
    """msmt17: v1 or v2, empty: whichever exists. cuhk03_np: labeled (default) or detected. vehicleid: size of the test
    list in identities, 800 (default), 1600 or 2400."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the identity split (pku_reid) or of the drawn gallery (vehicleid)."""
    train_fraction: float = Field(default=0.5, gt=0, lt=1)
    """pku_reid: share of the identities in the train split; the others are query and gallery."""
    include_val: bool = True
    """msmt17: train on list_train and list_val, as CLIP-ReID does, or on list_train alone, as torchreid does."""
    keep_junk: bool = False
    """Keep images with identity -1. No metric counts them, so captioning them wastes time."""
    require_splits: tuple[SplitName, ...] = SPLITS
    """Splits that must not be empty: all three to train and evaluate, none to only caption a folder."""
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

    @model_validator(mode="after")
    def _options_fit_the_reader(self) -> Self:
        fields = type(self).model_fields
        problems = [
            (option, f"has no effect with the reader {self.reader}, only with {', '.join(readers)}; remove it")
            for option, readers in _OPTIONS.items()
            if self.reader not in readers and getattr(self, option) != fields[option].default
        ]
        known = _VERSIONS.get(self.reader, ())
        if known and self.version and self.version not in known:
            hint = f"set {{at}}version to one of {', '.join(known)}, such as {{at}}version={known[0]}"
            problems.append(("version", f"{self.version!r} is not an edition of {self.reader}; {hint}"))
        raise_settings(problems)
        return self


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
    return scan.records


def scan_dataset(config: DatasetConfig) -> Scan:
    """Return the images that the config's reader finds; raises DataError if its folder does not have that layout."""
    if not config.root:
        raise ConfigError(
            f"data.root is empty; set data.root to the folder of the dataset {config.label}, such as"
            f" data.root=/data/{config.reader}"
        )
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
