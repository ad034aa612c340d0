"""The controls of a study: captions that were not written for their image.

``ShuffleStage`` gives every training image a caption of another identity: a gain that remains does not come from what
the captions say. ``TrueStage`` writes what can be seen in a synthetic image and nothing else: the best that a captioner
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
from data.errors import DataError
from data.files import write_table
from data.people import is_junk
from data.schemas import CAPTIONS, SCHEMA_VERSION
from data.slots import SLOTS
from data.stages.stage import Ingredients, RunContext, Stage

STAGE: Final = "caption_control"
STAGE_VERSION: Final = 2
TRUTH: Final = "attributes.parquet"
"""What `data.synthetic` writes beside its images: one row per image, each slot's value and whether it is visible."""

_PLACE: Final = ("image_path", "image_sha256", "split", "pid", "camid")
_SHOWN: Final = 5
_TRUE_MODEL: Final = "clip-scgi/true-attributes"

Indices = NDArray[np.int64]


class ShuffleConfig(Config):
    """How captions change hands."""

    seed: int = 0
    """Of the order of the identities and of the images."""
    unit: Literal["identity", "image"] = "identity"
    """identity: the images of a person get the captions of one other person where their numbers allow it, so captions
    still agree within an identity. image: each image gets the caption of anybody else, so they do not agree either."""


@dataclass(frozen=True, kw_only=True)
class ShuffleStage(Stage):
    """Give the training images of a caption artifact the captions of images of other identities.

    Every caption is used exactly once, and its whole row moves: text, attributes, status and provenance. Rows of query
    and gallery stay. captions: the caption artifact.

    `make` raises DataError when one identity has more than half of the training images.
    """

    name: ClassVar[str] = STAGE
    captions: ArtifactRef
    config: ShuffleConfig

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the captions and how they change hands."""
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
    """Return `rows` in an order that depends on no path, so that a renamed file moves no caption."""
    keys = [table[name].to_pylist() for name in ("pid", "camid", "image_sha256", "caption")]
    return np.array(sorted(rows.tolist(), key=lambda row: (*(key[row] for key in keys[:3]), keys[3][row] or "")), int)


def exchange(pids: Indices, *, seed: int, unit: Literal["identity", "image"]) -> Indices:
    """Return for each image the image whose caption it gets: a permutation [N] without any pair of one identity.

    pids: identity of each image, [N]. Raises DataError when there is no such permutation.
    """
    identities, counts = np.unique(pids, return_counts=True)
    largest = int(counts.max(initial=0))
    if 2 * largest > len(pids):
        raise DataError(
            f"captions cannot change hands: {largest} of {len(pids)} training images are of one identity; "
            "no more than half may be"
        )
    rng = np.random.default_rng(seed)
    rank = rng.permutation(len(identities))[np.searchsorted(identities, pids)]
    order = np.lexsort((rng.permutation(len(pids)), rank))  # people in random order, the images of each together
    source = np.empty(len(pids), dtype=np.int64)
    # No identity is longer than the shift, so none reaches itself; of equally long ones each reaches exactly one other.
    source[order] = np.roll(order, -largest)
    return source if unit == "identity" else _scatter(pids, rng)


def _scatter(pids: Indices, rng: np.random.Generator) -> Indices:
    """Return a random permutation, corrected by swaps where an image got a caption of its own identity."""
    source = rng.permutation(len(pids))
    for image in np.flatnonzero(pids[source] == pids):
        # At most half of the images are of this identity, and at most half of the captions: a partner is left.
        partners = np.flatnonzero((pids[source] != pids[image]) & (pids != pids[source[image]]))
        if pids[source[image]] == pids[image]:
            partner = rng.choice(partners)
            source[[image, partner]] = source[[partner, image]]
    return source


@dataclass(frozen=True, kw_only=True)
class TrueStage(Stage):
    """Write for every synthetic image what can be seen in it, composed with the paper's template.

    The root of the images is a synthetic dataset, which has attributes.parquet. `make` raises DataError when an image
    has no row there.
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
                f"{path} lacks {len(unknown)} images, such as {', '.join(unknown[:_SHOWN])}; "
                "true captions need the images that data.synthetic.world has drawn, and no others"
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
