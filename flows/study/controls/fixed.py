"""The same text for every image: one caption, or an empty text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import pyarrow as pa

from captioning.prompts.templates import compose
from data.artifacts.contents import IMAGES_FILE
from data.artifacts.store import Produced
from data.schemas import CAPTIONS, SCHEMA_VERSION, WORDLESS
from data.slots import VOCABULARY
from data.stages.stage import Ingredients, RunContext, Stage
from flows.study.controls.write import STAGE, STAGE_VERSION, caption_row, provenance, write_captions

CONSTANT: Final = compose({slot: values[0] for slot, values in VOCABULARY.items()})
"""The caption of every image in the control constant: in the form of the others, with the first value of every slot."""
TEXTS: Final = {"constant": CONSTANT, "empty": WORDLESS}


@dataclass(frozen=True, kw_only=True)
class FixedStage(Stage):
    """Give every image the same text. The empty one is `data.schemas.WORDLESS`, so that it is not missing."""

    name: ClassVar[str] = STAGE
    kind: Literal["constant", "empty"]

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the images and the text."""
        return {
            "control": self.kind,
            "text": TEXTS[self.kind],
            "images": run.images.ref.digests_of(IMAGES_FILE),
            "schema_version": SCHEMA_VERSION,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write captions.parquet."""
        index = run.images.rows("path", "sha256", "split", "pid", "camid")
        constant = provenance(self.ingredients(run), model_id=f"clip-scgi/{self.kind}", revision="1")
        rows = [constant | caption_row(image, TEXTS[self.kind]) for image in index.to_pylist()]
        return write_captions(folder, pa.Table.from_pylist(rows, schema=CAPTIONS))
