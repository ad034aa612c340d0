"""Which images a training run uses: rows of images.parquet, with captions where the method reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, caption_text
from data.artifacts.store import ArtifactRef
from data.device import PROCESSES_KEY
from data.errors import ConfigError, DataError, raise_problems
from data.people import is_junk
from reid.config.train import TrainConfig

Rows = dict[str, list[Any]]
"""Columns of images: position (row in images.parquet), path, sha256, split, pid, camid and, later, caption."""

MIN_IDENTITIES: Final = 2
"""Fewer identities cannot be told apart."""
_SHOWN: Final = 5


class TrainingRows(NamedTuple):
    """The training split: the images that are trained on, and those of identities that are held out."""

    trained: Rows
    held_out: Rows
    uncaptioned: int
    """Images left out because they have no caption."""


def training_rows(images: ArtifactRef, captions: ArtifactRef | None, config: TrainConfig) -> TrainingRows:
    """Return the training split of `images` as `config` uses it, in an order that depends on no path.

    Rows are sorted by identity, camera, digest and caption. The sampler and the augmentation draw by row number, so
    images that are renamed, and nothing else, give the same model.

    Raises:
        ConfigError: captions are needed and not given, or too few identities to hold any out.
        DataError: no training images, captions of other images, or too many images without one.
    """
    rows = _training_split(images)
    raise_problems("training", batch_problems(rows["pid"], config), ConfigError)
    kept = held_out_identities(rows["pid"], config) if config.validation.holds_out else set()
    used = _take(rows, [row for row, pid in enumerate(rows["pid"]) if pid not in kept])
    held_out = _take(rows, [row for row, pid in enumerate(rows["pid"]) if pid in kept])
    trained = _captioned(used, captions, config) if config.needs_captions else used
    uncaptioned = len(used["path"]) - len(trained["path"])
    return TrainingRows(_by_content(trained), _by_content(held_out), uncaptioned)


def read_rows(images: ArtifactRef) -> Rows:
    """Return all rows of images.parquet."""
    columns = ["path", "sha256", "split", "pid", "camid"]
    rows: Rows = pq.read_table(images.folder / IMAGES_FILE, columns=columns).to_pydict()
    return {**rows, "position": list(range(len(rows["path"])))}


def _training_split(images: ArtifactRef) -> Rows:
    rows = read_rows(images)
    chosen = train_rows(rows["split"], rows["pid"]).tolist()
    if not chosen:
        raise DataError(f"{images.folder}/images.parquet holds no training images; check the split of the data set")
    return _take(rows, chosen)


def train_rows(splits: Sequence[str], pids: Sequence[int]) -> NDArray[np.int64]:
    """Return the rows of images.parquet that a training can use, sorted: the training split without junk."""
    return np.flatnonzero((np.array(splits, dtype=object) == "train") & ~is_junk(pids))


def _by_content(rows: Rows) -> Rows:
    """Sort rows by what they hold. Rows that compare equal hold the same image, label and caption."""
    names = [name for name in ("pid", "camid", "sha256", "caption") if name in rows]
    keys = list(zip(*(rows[name] for name in names), strict=True))
    return _take(rows, sorted(range(len(keys)), key=keys.__getitem__))


def _take(rows: Rows, chosen: list[int]) -> Rows:
    return {name: [values[row] for row in chosen] for name, values in rows.items()}


def batch_problems(pids: Iterable[int], config: TrainConfig, processes: int = 1) -> list[str]:
    """Return why training images of identities `pids` do not fill the batches of `config`; empty if they do.

    processes: how many share each batch.
    """
    people, wanted = len(set(pids)), config.batch.identities
    left = people - _held_out_count(people, config)
    held_out = f"train.validation.held_out={config.validation.held_out:g}"
    if people < MIN_IDENTITIES:
        return [
            f"training needs at least {MIN_IDENTITIES} identities and the data set has {people}: add training images"
        ]
    if left < MIN_IDENTITIES:
        batch = f" and train.batch.identities={people}" if people < wanted else ""
        told = f"{held_out} leaves {left} of {people} training identities"
        return [f"{told}: set train.validation.every=0{batch}"]
    if left < wanted:
        beside = f"{left} of {people} training identities are left beside {held_out}"
        have = beside if left < people else f"the data set has {people} training identities"
        return [f"train.batch.identities={wanted} but {have}: {_smaller_batch(left, processes)}"]
    if wanted % processes:
        told = f"{PROCESSES_KEY}={processes} does not divide train.batch.identities={wanted}"
        return [f"{told}: {_smaller_batch(wanted, processes)}"]
    return []


def _smaller_batch(most: int, processes: int) -> str:
    """Return how to set the identities of a batch to at most `most`, as a multiple of `processes`."""
    fitting = most - most % processes
    if fitting < MIN_IDENTITIES:
        return f"set train.batch.identities={most} and {PROCESSES_KEY}=1"
    return f"set train.batch.identities={fitting}" + (" or lower" if processes == 1 else "")


def _held_out_count(people: int, config: TrainConfig) -> int:
    return max(2, round(config.validation.held_out * people)) if config.validation.holds_out else 0


def held_out_identities(pids: Iterable[int], config: TrainConfig) -> set[int]:
    """Draw the identities that are not trained on."""
    people = sorted(set(pids))
    drawn = np.random.default_rng(config.validation.split_seed).permutation(people)
    return {int(pid) for pid in drawn[: _held_out_count(len(people), config)]}


def _captioned(rows: Rows, captions: ArtifactRef | None, config: TrainConfig) -> Rows:
    """Add the column `caption` and leave out images without one, up to the share that `config` allows.

    A caption that could not be parsed or was cut short is a text like any other for CLIP; only an empty one is
    missing. No other caption ever takes its place.
    """
    if captions is None:
        raise ConfigError(f"method {config.method} reads captions: give the caption artefact of these images")
    table = pq.read_table(captions.folder / CAPTIONS_FILE, columns=["image_path", "image_sha256", "caption"])
    known = {
        (path, sha256): caption_text(caption)
        for path, sha256, caption in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    }
    keys = list(zip(rows["path"], rows["sha256"], strict=True))
    unknown = [path for path, sha256 in keys if (path, sha256) not in known]
    if unknown:
        raise DataError(
            f"{captions.folder}/captions.parquet knows nothing of {len(unknown)} training images, such as "
            f"{', '.join(unknown[:_SHOWN])}: it belongs to other images; run the caption stage on these"
        )
    kept = [row for row, key in enumerate(keys) if known[key]]
    missing = len(keys) - len(kept)
    if missing > config.max_uncaptioned * len(keys):
        shown = ", ".join([path for path, sha256 in keys if not known[path, sha256]][:_SHOWN])
        raise DataError(
            f"{missing} of {len(keys)} training images have no caption (such as {shown}), more than "
            f"train.max_uncaptioned={config.max_uncaptioned:g}; caption them, or set "
            f"train.max_uncaptioned={math.ceil(100 * missing / len(keys)) / 100:g} to leave them out"
        )
    return {**_take(rows, kept), "caption": [known[keys[row]] for row in kept]}
