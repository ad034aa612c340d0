"""The controls of a study: captions that were not written for their image.

``ShuffleStage`` gives every training image a caption of another identity: any remaining gain does not come from the
content of the captions. ``TrueStage`` writes exactly what is visible in a synthetic image, the best that a captioner
could do. Both are pure functions of their inputs and write captions.parquet like the caption stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from captioning.attributes.parse import parse_caption
from captioning.prompts.templates import compose
from data.artifacts.contents import CAPTIONS_FILE, IMAGES_FILE, contents_of_captions
from data.artifacts.fingerprint import digest
from data.artifacts.store import ArtifactRef, Produced
from data.config import Config
from data.errors import DataError, counted
from data.files import write_table
from data.people import is_junk
from data.schemas import CAPTIONS, SCHEMA_VERSION
from data.slots import SLOTS
from data.stages.stage import Ingredients, RunContext, Stage

STAGE: Final = "caption_control"
STAGE_VERSION: Final = 2
TRUTH: Final = "attributes.parquet"
"""File that `data.synthetic` writes next to its images: per image, the value of each slot and its visibility."""

_PLACE: Final = ("image_path", "image_sha256", "split", "pid", "camid")
_SHOWN: Final = 5
_TRUE_MODEL: Final = "clip-scgi/true-attributes"

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
        split, pids = np.array(table["split"].to_pylist()), table["pid"].to_numpy()
        source = np.arange(table.num_rows)
        train = _by_content(table, np.flatnonzero((split == "train") & ~is_junk(pids)))
        source[train] = train[exchange(pids[train], seed=self.config.seed, unit=self.config.unit)]
        moved = table.take(pa.array(source))
        columns = {name: (table if name in _PLACE else moved)[name] for name in CAPTIONS.names}
        return _write(folder, pa.table(columns))


def _write(folder: Path, captions: pa.Table) -> Produced:
    write_table(folder / CAPTIONS_FILE, captions, CAPTIONS)
    return Produced(contents=contents_of_captions(captions))


def _by_content(table: pa.Table, rows: Indices) -> Indices:
    """Return `rows` in an order that does not depend on paths, so that renaming files does not change the result."""
    keys = [table[name].to_pylist() for name in ("pid", "camid", "image_sha256", "caption")]
    return np.array(sorted(rows.tolist(), key=lambda row: (*(key[row] for key in keys[:3]), keys[3][row] or "")), int)


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


@dataclass(frozen=True, kw_only=True)
class TrueStage(Stage):
    """Caption every synthetic image with its visible attributes, using the template of the paper.

    The images are a synthetic dataset with attributes.parquet in its root. `make` raises DataError when that file lacks
    an image.
    """

    name: ClassVar[str] = STAGE

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the images and the file of their attributes."""
        return {
            "control": "true",
            "images": run.images.ref.digests_of(IMAGES_FILE),
            "truth": run.store.memo.digest_folder(run.images.root, [TRUTH])[TRUTH],
            "schema_version": SCHEMA_VERSION,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write captions.parquet."""
        index, path = run.images.rows("path", "sha256", "split", "pid", "camid"), run.images.root / TRUTH
        truth = {row["path"]: row for row in pq.read_table(path).to_pylist()}
        unknown = [image for image in index["path"].to_pylist() if image not in truth]
        if unknown:
            raise DataError(
                f"{path} lacks {counted(len(unknown), 'image')}, such as {', '.join(unknown[:_SHOWN])}; "
                "true captions need a dataset with only images drawn by data.synthetic.world"
            )
        constant = _true_provenance(self.ingredients(run))
        rows = [constant | _true_row(image, truth[image["path"]]) for image in index.to_pylist()]
        return _write(folder, pa.Table.from_pylist(rows, schema=CAPTIONS))


def _true_provenance(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "ok",
        "template_id": "scgi",
        "model_id": _TRUE_MODEL,
        "model_revision": str(ingredients["truth"])[:32],
        "captioner_fingerprint": digest(dict(ingredients))[:32],
        "truncated": False,
    }


def _true_row(image: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
    text = compose({slot: truth[slot] for slot in SLOTS if truth[f"visible_{slot}"]})
    slots = parse_caption(text)
    return {
        "image_path": image["path"],
        "image_sha256": image["sha256"],
        **{name: image[name] for name in ("split", "pid", "camid")},
        "caption": text,
        "raw_text": text,
        **{f"attr_{slot}": slots[slot] for slot in SLOTS},
    }
