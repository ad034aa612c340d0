"""captions.parquet and its cleaning as plain loops over Python rows: the definition that the stage must equal."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from captioning.attributes.parse import parse_caption
from captioning.captioner import Captioner
from captioning.config import CaptionConfig
from captioning.prompts.cleaning import CleaningConfig
from captioning.prompts.pattern import PAPER_PATTERN, Pattern, Slots, compose
from captioning.stage.worker import Failure
from data.people import JUNK
from data.schemas import CAPTIONS, LABEL
from data.slots import SLOTS


def plain_view(
    index: pa.Table, known: pa.Table, failed: Mapping[str, Failure], captioner: Captioner, config: CaptionConfig
) -> pa.Table:
    """Return the rows of captions.parquet. index: images.parquet. known: rows of the store."""
    by_image = {
        image: {"raw_text": None, "status": status, "error": error} for image, (status, error) in failed.items()
    }
    by_image |= {row["image_sha256"]: row for row in known.to_pylist()}
    local = config.engine == "transformers"
    constant = {
        "template_id": config.prompt_template.id,
        "model_id": captioner.model_id,
        "model_revision": captioner.model_revision,
        "captioner_fingerprint": captioner.fingerprint,
        "dtype": config.number_format if local else None,
        "quantization": config.quantization if local else None,
    }
    rows = []
    for image in index.to_pylist():
        place = {name: image[name] for name in ("split", "pid", "camid")}
        place |= {"image_path": image["path"], "image_sha256": image["sha256"]}
        rows.append(constant | _reading(by_image[image["sha256"]]) | place)
    if config.cleaning != CleaningConfig():
        _clean(rows, config)
    table = pa.Table.from_pylist(rows, schema=CAPTIONS)
    return table.append_column(LABEL, index[LABEL.name]) if LABEL.name in index.column_names else table


def _reading(row: Mapping[str, Any]) -> dict[str, Any]:
    raw = row["raw_text"]
    if raw is None:
        return dict(row)
    text = " ".join(raw.split())
    slots = parse_caption(text)
    status = row["status"]
    if status == "ok" and not any(slots.values()):
        status = "unparsed"
    return {**row, "caption": text, "status": status, **{f"attr_{slot}": slots[slot] for slot in SLOTS}}


def _clean(rows: list[dict[str, Any]], config: CaptionConfig) -> None:
    usable = [row for row in rows if row["split"] == "train" and row["pid"] != JUNK]
    training = [row for row in usable if row.get("caption") is not None]
    majorities = plain_majorities(((row["pid"], _slots(row)) for row in training), config.cleaning)
    for row in rows:
        if row.get("caption") is not None:
            row["caption"] = plain_clean(
                row["caption"],
                _slots(row),
                confidence={slot: row[f"conf_{slot}"] for slot in SLOTS},
                majority=majorities.get(row["pid"], {}) if row["split"] == "train" else {},
                config=config.cleaning,
                pattern=config.prompt_template.pattern or PAPER_PATTERN,
            )


def _slots(row: Mapping[str, Any]) -> dict[str, str | None]:
    return {slot: row[f"attr_{slot}"] for slot in SLOTS}


def plain_majorities(rows: Iterable[tuple[int, Slots]], config: CleaningConfig) -> dict[int, dict[str, str]]:
    """Return identity -> slot -> value of the slots on which the captions of an identity clearly agree.

    rows: (identity, slots) of the training captions. Empty if `drop_dissent` is off.
    """
    if not config.drop_dissent:
        return {}
    tallies: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for pid, slots in rows:
        for slot in SLOTS:
            value = slots.get(slot)
            if value is not None:
                tallies[pid, slot][value] += 1
    clear: dict[int, dict[str, str]] = {}
    for (pid, slot), tally in tallies.items():
        value, votes = tally.most_common(1)[0]  # a tie is never clear: the share must exceed one half
        if tally.total() >= config.min_images and votes >= config.majority * tally.total():
            clear.setdefault(pid, {})[slot] = value
    return clear


def plain_clean(
    text: str,
    slots: Slots,
    *,
    confidence: Mapping[str, float | None],
    majority: Mapping[str, str],
    config: CleaningConfig,
    pattern: Pattern,
) -> str:
    """Return the caption without its doubtful answers."""
    dropped = []
    for slot, value in slots.items():
        known, most = confidence.get(slot), majority.get(slot)
        unsure = known is not None and config.drop_below > 0 and known < math.log(config.drop_below)
        dissents = config.drop_dissent and most is not None and value != most
        if value is not None and (unsure or dissents):
            dropped.append(slot)
    if not dropped and not config.recompose:
        return text
    return compose({slot: None if slot in dropped else value for slot, value in slots.items()}, pattern)
