"""Captions of other people: shuffled by person or image by image, each moved with its whole row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts.contents import CAPTIONS_FILE
from data.artifacts.store import ArtifactRef, Produced
from data.config import Config
from data.errors import DataError
from data.people import is_junk
from data.schemas import CAPTIONS, SCHEMA_VERSION
from data.splits import TRAIN
from data.stages.stage import Ingredients, RunContext, Stage
from flows.study.controls.write import STAGE, STAGE_VERSION, write_captions

_PLACE: Final = ("image_path", "image_sha256", "split", "pid", "camid")

Indices = NDArray[np.int64]


class ShuffleConfig(Config):
    """How captions are shuffled."""

    seed: int = 0
    """Seed of the order of identities and images."""
    unit: Literal["identity", "image"] = "identity"
    """identity: the images of a person get the captions of one other person if the numbers of images allow it, so that
    captions still agree within an identity. image: each image gets the caption of any other person, so that they do not
    agree."""


@dataclass(frozen=True, kw_only=True)
class ShuffleStage(Stage):
    """Give the training images of a caption artifact the captions of images of other identities.

    Every caption is used exactly once and moves with its whole row: text, attributes, status and provenance. Rows of
    query and gallery are unchanged. captions: the caption artifact.

    `make` raises DataError when one identity has more than half of the training images.
    """

    name: ClassVar[str] = STAGE
    captions: ArtifactRef
    config: ShuffleConfig

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the captions and how they are shuffled."""
        return {
            "control": "shuffled",
            "captions": self.captions.digests_of(CAPTIONS_FILE),
            "config": self.config.identity(),
            "schema_version": SCHEMA_VERSION,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write captions.parquet."""
        table = pq.read_table(self.captions.folder / CAPTIONS_FILE)
        is_trained, pids = pc.equal(table["split"], TRAIN).to_numpy(), table["pid"].to_numpy()
        source = np.arange(table.num_rows)
        train = _by_content(table, np.flatnonzero(is_trained & ~is_junk(pids)))
        source[train] = train[exchange(pids[train], seed=self.config.seed, unit=self.config.unit)]
        moved = table.take(pa.array(source))
        columns = {name: (table if name in _PLACE else moved)[name] for name in CAPTIONS.names}
        return write_captions(folder, pa.table(columns))


def _by_content(table: pa.Table, rows: Indices) -> Indices:
    """Return `rows` in an order that does not depend on paths, so that renaming files does not change the result."""
    names = ("pid", "camid", "image_sha256", "caption")
    keys = table.select(names).take(pa.array(rows))
    keys = keys.set_column(3, names[3], keys[names[3]].fill_null(""))
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in names])  # stable
    return rows[order.to_numpy()]


def exchange(pids: Indices, *, seed: int, unit: Literal["identity", "image"]) -> Indices:
    """Return, for each image, the image whose caption it gets: a permutation [N] that always changes the identity.

    pids: identity of each image, [N]. Raises DataError when such a permutation does not exist.
    """
    identities, counts = np.unique(pids, return_counts=True)
    largest = int(counts.max(initial=0))
    if 2 * largest > len(pids):
        raise DataError(
            f"captions cannot be shuffled: {largest} of {len(pids)} training images are of one identity, more than "
            "half; add images of other identities, or leave out the variants with shuffled captions"
        )
    rng = np.random.default_rng(seed)
    rank = rng.permutation(len(identities))[np.searchsorted(identities, pids)]
    order = np.lexsort((rng.permutation(len(pids)), rank))  # identities in random order, each with its images together
    source = np.empty(len(pids), dtype=np.int64)
    # The shift is at least the size of any identity, so none maps to itself; if all have equal size, each maps to one.
    source[order] = np.roll(order, -largest)
    return source if unit == "identity" else _scatter(pids, rng)


def _scatter(pids: Indices, rng: np.random.Generator) -> Indices:
    """Return a random permutation, corrected by swaps where an image got a caption of its own identity."""
    source = rng.permutation(len(pids))
    for image in np.flatnonzero(pids[source] == pids):
        # At most half of the images and half of the captions are of this identity, so a partner exists.
        partners = np.flatnonzero((pids[source] != pids[image]) & (pids != pids[source[image]]))
        if pids[source[image]] == pids[image]:
            partner = rng.choice(partners)
            source[[image, partner]] = source[[partner, image]]
    return source
