"""What the controls share: their stage, and the rows of captions that no captioner wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from captioning.attributes.parse import parse_caption
from data.artifacts.contents import CAPTIONS_FILE, contents_of_captions
from data.artifacts.fingerprint import digest
from data.artifacts.store import Produced
from data.files import write_table
from data.schemas import CAPTIONS
from data.slots import SLOTS
from data.stages.stage import Ingredients

STAGE: Final = "caption_control"
STAGE_VERSION: Final = 2


def write_captions(folder: Path, captions: pa.Table) -> Produced:
    """Write captions.parquet."""
    write_table(folder / CAPTIONS_FILE, captions, CAPTIONS)
    return Produced(contents=contents_of_captions(captions))


def provenance(ingredients: Ingredients, *, model_id: str, revision: str) -> dict[str, Any]:
    """Return the columns that are the same for every image. model_id: name of the control."""
    return {
        "status": "ok",
        "template_id": "scgi",
        "model_id": model_id,
        "model_revision": revision,
        "captioner_fingerprint": digest(dict(ingredients))[:32],
        "truncated": False,
    }


def caption_row(image: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the columns of one image of images.parquet with the caption `text`."""
    slots = parse_caption(text)
    return {
        "image_path": image["path"],
        "image_sha256": image["sha256"],
        **{name: image[name] for name in ("split", "pid", "camid")},
        "caption": text,
        "raw_text": text,
        **{f"attr_{slot}": slots[slot] for slot in SLOTS},
    }
