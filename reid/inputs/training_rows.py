"""The images of a training run: rows of images.parquet, with captions if the method reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from data.artifacts.contents import CAPTIONS_FILE
from data.artifacts.store import ArtifactRef
from data.columns.distinct import equal_runs
from data.columns.texts import Texts
from data.device import PROCESSES_KEY
from data.errors import ConfigError, DataError, counted, raise_problems
from data.stages.images import IndexedImages
from reid.config.train import TrainConfig
from reid.inputs.caption_rows import captions_of_rows
from reid.inputs.image_rows import ImageRows, Ints, read_rows

MIN_IDENTITIES: Final = 2
"""Fewest identities that a model can be trained to distinguish."""
_SHOWN: Final = 5


class TrainingRows(NamedTuple):
    """The training split: images to train on, and images of held-out identities."""

    trained: ImageRows
    captions: Texts
    """Caption of each image in `trained`; empty for methods that do not read captions."""
    held_out: ImageRows
    uncaptioned: int
    """Number of images left out because they lack a caption."""


def training_rows(images: IndexedImages, captions: ArtifactRef | None, config: TrainConfig) -> TrainingRows:
    """Return the training split of `images` under `config`, in an order that does not depend on paths.

    Rows are sorted by identity, camera, digest and caption. The sampler and the augmentation draw by row number, so
    renaming images does not change the model.

    Raises:
        ConfigError: captions are needed but not given, or there are too few identities for a batch.
        DataError: the train split is empty, captions belong to other images, or too many images lack one.
    """
    everything = read_rows(images)
    used, held_out = _divided(everything, images, config)
    if config.needs_captions:
        texts = _captions(used, everything, captions, config)
        present = np.flatnonzero(texts.lengths())
        order = present[_by_content(everything, used[present], lambda at: texts[present[at]])]
    else:
        texts, order = None, _by_content(everything, used)
    trained, unused = everything.take(used[order]), everything.take(held_out[_by_content(everything, held_out)])
    del everything  # before the captions are copied: at millions of images it is as large as they are
    return TrainingRows(
        trained=trained,
        captions=Texts([]) if texts is None else texts[order],
        held_out=unused,
        uncaptioned=len(used) - len(trained),
    )


def _divided(everything: ImageRows, images: IndexedImages, config: TrainConfig) -> tuple[Ints, Ints]:
    """Return the places of the training images, and of those that are held out."""
    train = everything.of_split("train")
    if not len(train):
        raise DataError(f"{images.file} does not list any training images; check the split of the dataset")
    pids = everything.pid[train]
    raise_problems("training", batch_problems(pids, config), ConfigError)
    is_held_out = np.isin(pids, held_out_identities(pids, config) if config.validation.holds_out else ())
    return train[~is_held_out], train[is_held_out]


def _by_content(everything: ImageRows, rows: Ints, caption_of: Callable[[int], str] | None = None) -> Ints:
    """Return the order of the images at `rows` by content.

    Images that compare equal have the same bytes, labels and caption. caption_of: returns the caption of the image at a
    place in `rows`.
    """
    columns = [column[rows] for column in (everything.pid, everything.camid, everything.sha256)]
    order: Ints = np.lexsort(columns[::-1])
    if caption_of is not None:
        for start, end in equal_runs([column[order] for column in columns]):
            order[start:end] = sorted(order[start:end].tolist(), key=caption_of)
    return order


def batch_problems(pids: ArrayLike, config: TrainConfig, processes: int = 1) -> list[str]:
    """Return why training images of identities `pids` cannot fill the batches of `config`; empty if they can.

    processes: number of processes that share each batch.
    """
    people, wanted = len(np.unique(pids)), config.batch.identities
    left = people - _held_out_count(people, config)
    held_out = f"train.validation.held_out={config.validation.held_out:g}"
    if people < MIN_IDENTITIES:
        return [
            f"training needs at least {MIN_IDENTITIES} identities but the dataset has {people}: add training images"
        ]
    if left < MIN_IDENTITIES:
        batch = f" and train.batch.identities={people}" if people < wanted else ""
        told = f"{held_out} leaves {left} of {people} training identities"
        return [f"{told}: set train.validation.every=0{batch}"]
    if left < wanted:
        beside = f"{held_out} leaves {left} of {people} training identities"
        have = beside if left < people else f"the dataset has {people} training identities"
        return [f"train.batch.identities={wanted} but {have}: {_smaller_batch(left, processes)}"]
    if wanted % processes:
        told = f"{PROCESSES_KEY}={processes} does not divide train.batch.identities={wanted}"
        return [f"{told}: {_smaller_batch(wanted, processes)}"]
    return []


def _smaller_batch(most: int, processes: int) -> str:
    """Return the settings for a batch of at most `most` identities, a multiple of `processes`."""
    fitting = most - most % processes
    if fitting < MIN_IDENTITIES:
        return f"set train.batch.identities={most} and {PROCESSES_KEY}=1"
    return f"set train.batch.identities={fitting}" + (
        " or lower" if processes == 1 and fitting > MIN_IDENTITIES else ""
    )


def _held_out_count(people: int, config: TrainConfig) -> int:
    return max(2, round(config.validation.held_out * people)) if config.validation.holds_out else 0


def held_out_identities(pids: ArrayLike, config: TrainConfig) -> Ints:
    """Draw the identities to hold out of training; return them sorted."""
    people = np.unique(np.asarray(pids, dtype=np.int64))
    drawn = np.random.default_rng(config.validation.split_seed).permutation(people)
    held_out: Ints = np.sort(drawn[: _held_out_count(len(people), config)])
    return held_out


def _captions(rows: Ints, everything: ImageRows, captions: ArtifactRef | None, config: TrainConfig) -> Texts:
    """Return the caption of each image at `rows`; up to the ratio `config.max_uncaptioned` may be empty.

    Captions that could not be parsed or were truncated are used like any other; only empty captions count as missing.
    They are never replaced by another caption. everything: all images of the dataset.
    """
    if captions is None:
        raise ConfigError(f"method {config.method} reads captions: give the caption artifact of these images")
    texts, unknown = captions_of_rows(captions.folder / CAPTIONS_FILE, rows, everything)
    if len(unknown):
        raise DataError(
            f"{captions.folder}/captions.parquet lacks {counted(len(unknown), 'training image')}, such as "
            f"{', '.join(everything.path[rows[unknown[:_SHOWN]]])}: it was made from other images; run the caption"
            " stage on this dataset"
        )
    absent = np.flatnonzero(texts.lengths() == 0)
    if len(absent) > config.max_uncaptioned * len(rows):
        raise DataError(
            f"{len(absent)} of {counted(len(rows), 'training image')} lack a caption (such as "
            f"{', '.join(everything.path[rows[absent[:_SHOWN]]])}), more than "
            f"train.max_uncaptioned={config.max_uncaptioned:g}: caption them, or set "
            f"train.max_uncaptioned={math.ceil(100 * len(absent) / len(rows)) / 100:g} to leave them out"
        )
    return texts
