"""True captions of synthetic images: exactly what is visible, the best that a captioner could do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.prompts.templates import compose
from data.artifacts.contents import IMAGES_FILE
from data.artifacts.store import Produced
from data.errors import DataError, counted
from data.schemas import CAPTIONS, SCHEMA_VERSION
from data.slots import SLOTS
from data.stages.stage import Ingredients, RunContext, Stage
from flows.study.controls.write import STAGE, STAGE_VERSION, caption_row, provenance, write_captions

TRUTH: Final = "attributes.parquet"
"""File that `data.synthetic` writes next to its images: per image, the value of each slot and its visibility."""

_SHOWN: Final = 5
_MODEL: Final = "clip-scgi/true-attributes"


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
        index = run.images.rows("path", "sha256", "split", "pid", "camid")
        truth = read_truth(run.images.root, index["path"].to_pylist())
        ingredients = self.ingredients(run)
        constant = provenance(ingredients, model_id=_MODEL, revision=str(ingredients["truth"])[:32])
        rows = [constant | caption_row(*pair) for pair in zip(index.to_pylist(), map(_text, truth), strict=True)]
        return write_captions(folder, pa.Table.from_pylist(rows, schema=CAPTIONS))


def read_truth(root: Path, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the row of attributes.parquet of each image under `root`. Raises DataError if an image has none."""
    path = root / TRUTH
    found = {row["path"]: row for row in pq.read_table(path).to_pylist()} if path.is_file() else {}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise DataError(
            f"{path} lacks {counted(len(unknown), 'image')}, such as {', '.join(unknown[:_SHOWN])}; "
            "true attributes need a dataset with only images drawn by data.synthetic.world"
        )
    return [found[name] for name in names]


def _text(truth: Mapping[str, Any]) -> str:
    return compose({slot: truth[slot] for slot in SLOTS if truth[f"visible_{slot}"]})
