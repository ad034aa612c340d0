"""captions.parquet: the captions of a store as a table of one dataset, one row per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from captioning.attributes.parse import parse_caption
from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.prompts.cleaning import CleaningConfig, clean_caption, clear_majorities
from captioning.prompts.pattern import PAPER_PATTERN
from captioning.stage.worker import Failure
from data.errors import RetryableError, counted
from data.people import JUNK
from data.schemas import CAPTIONS, LABEL
from data.slots import SLOTS


def view(
    index: pa.Table, known: pa.Table, failed: Mapping[str, Failure], captioner: Captioner, config: CaptionConfig
) -> pa.Table:
    """Return captions.parquet (`caption_table`) from a store.

    known: rows of the store. failed: image sha256 -> why it has no caption. Raises RetryableError for an image that is
    in neither.
    """
    by_image = {row["image_sha256"]: row for row in known.to_pylist()}
    by_image |= {image: failed_row(failure) for image, failure in failed.items() if image not in by_image}
    gone = set(index["sha256"].to_pylist()) - by_image.keys()
    if gone:
        raise RetryableError(
            f"the captions of {counted(len(gone), 'image')} disappeared from the store during captioning; run again"
        )
    return caption_table(index, [by_image[sha256] for sha256 in index["sha256"].to_pylist()], captioner, config)


def caption_table(
    index: pa.Table, replies: Sequence[Mapping[str, Any]], captioner: Captioner, config: CaptionConfig
) -> pa.Table:
    """Return one row (schemas.CAPTIONS) per image of `index` (schemas.IMAGES), in its order.

    The label is added if the index has it. replies: one row of a store, or `failed_row`, per image.
    """
    constant = _provenance(captioner, config)
    images = index.select(["path", "sha256", "split", "pid", "camid"]).to_pylist()
    rows = [constant | _reading(reply) | _place(image) for image, reply in zip(images, replies, strict=True)]
    _clean(rows, config)
    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    return table.append_column(LABEL, index[LABEL.name]) if LABEL.name in index.column_names else table


def _provenance(captioner: Captioner, config: CaptionConfig) -> dict[str, Any]:
    local = config.engine == "transformers"
    return {
        "template_id": config.prompt_template.id,
        "model_id": captioner.model_id,
        "model_revision": captioner.model_revision,
        "captioner_fingerprint": captioner.fingerprint,
        "dtype": config.number_format if local else None,
        "quantization": config.quantization if local else None,
    }


def failed_row(failure: Failure) -> dict[str, Any]:
    """Return the columns of a store's row for an image without a caption."""
    return {"raw_text": None, "status": failure.status, "error": failure.error}


def _clean(rows: list[dict[str, Any]], config: CaptionConfig) -> None:
    """Replace each caption by its cleaned text if cleaning is enabled."""
    if config.cleaning == CleaningConfig():
        return
    usable = [row for row in rows if row["split"] == "train" and row["pid"] != JUNK]
    training = [row for row in usable if row.get("caption") is not None]
    majorities = clear_majorities(((row["pid"], _slots(row)) for row in training), config.cleaning)
    for row in rows:
        if row.get("caption") is None:
            continue
        row["caption"] = clean_caption(
            row["caption"],
            _slots(row),
            confidence={slot: row[f"conf_{slot}"] for slot in SLOTS},
            majority=majorities.get(row["pid"], {}) if row["split"] == "train" else {},
            config=config.cleaning,
            pattern=config.prompt_template.pattern or PAPER_PATTERN,
        ).text


def _slots(row: Mapping[str, Any]) -> dict[str, str | None]:
    return {slot: row[f"attr_{slot}"] for slot in SLOTS}


def _place(image: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: image[name] for name in ("split", "pid", "camid")}
    return {"image_path": image["path"], "image_sha256": image["sha256"], **kept}


def _reading(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a store row with the normalized caption, its attributes, and its status after parsing."""
    raw = row["raw_text"]
    if raw is None:
        return dict(row)
    text = " ".join(raw.split())
    slots = parse_caption(text)
    status = row["status"]
    if status == "ok" and not any(slots.values()):
        status = "unparsed"
    return {**row, "caption": text, "status": status, **{f"attr_{slot}": slots[slot] for slot in SLOTS}}
