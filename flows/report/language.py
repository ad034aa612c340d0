"""The language part of the report: captions with their attributes, and the audit of whether they agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Final

from captioning.audit.flags import FLAGS
from data.images.thumbnails import Thumbnails
from data.people import JUNK, is_person
from data.slots import COLORS, NONE, SLOTS
from flows.report.gather import Row, counts, read_rows, spread, take_rows

SLOT_NAMES: Final = {slot: slot.replace("_", " ") for slot in SLOTS}
_STATUS_MEANINGS: Final = {
    "ok": "parsed into attributes",
    "unparsed": "no attribute could be read out of the text",
    "truncated": "the model ran into the token limit",
    "image_error": "the image could not be read, so there is no text",
    "server_error": "the captioning server gave no usable answer, so there is no text",
}
_CARD_ROWS: Final = {
    "person": ("gender", "age"),
    "upper": ("upper_color", "upper_type"),
    "lower": ("lower_color", "lower_type"),
    "shoes": ("shoes",),
    "hair": ("hair",),
    "glasses": ("glasses",),
    "carrying": ("carrying",),
}
_TOP_VALUES: Final = 6
_WORST_SLOTS: Final = 3


def caption_section(
    path: Path, flags: Mapping[str, Sequence[str]], thumbnail: Thumbnails, *, shown: int, failed: int, seed: int
) -> dict[str, Any]:
    """Choose captions of captions.parquet: good ones spread over identities, bad ones over their statuses."""
    rows = read_rows(path, ("pid", "status"))
    good = [index for index, row in enumerate(rows) if row["status"] == "ok" and row["pid"] != JUNK]
    bad = [index for index, row in enumerate(rows) if row["status"] != "ok"]
    good_at = spread([rows[index]["pid"] for index in good], shown, seed=seed, name="caption")
    bad_at = spread([rows[index]["status"] for index in bad], failed, seed=seed, name="failed")

    def cards(indices: list[int]) -> list[dict[str, Any]]:
        return [_card(row, flags, thumbnail) for row in take_rows(path, indices)]

    shown_cards = cards([good[at] for at in good_at])
    return {
        "with_confidence": any(
            chip["confidence"] is not None
            for card in shown_cards
            for chips in card["attributes"].values()
            for chip in chips
        ),
        "total": len(rows),
        "n_ok": sum(row["status"] == "ok" for row in rows),
        "statuses": [
            {"status": status, "count": count, "meaning": _STATUS_MEANINGS.get(status, "")}
            for status, count in counts(row["status"] for row in rows)
        ],
        "failed": sorted(cards([bad[at] for at in bad_at]), key=lambda card: card["status"]),
        "cards": shown_cards,
    }


def _card(row: Row, flags: Mapping[str, Sequence[str]], thumbnail: Thumbnails) -> dict[str, Any]:
    caption, raw = row["caption"] or "", row["raw_text"] or ""
    return {
        "path": row["image_path"],
        "split": row["split"],
        "pid": row["pid"],
        "camid": row["camid"],
        "image": thumbnail(row["image_path"]),
        "caption": caption,
        "raw": raw if raw.strip() != caption.strip() else "",
        "status": row["status"],
        "error": row["error"],
        "attributes": {name: [_chip(slot, row) for slot in slots] for name, slots in _CARD_ROWS.items()}
        if any(row[f"attr_{slot}"] is not None for slot in SLOTS)
        else {},
        "flags": flags.get(row["image_path"], ()),
    }


def _chip(slot: str, row: Row) -> dict[str, Any]:
    value, logprob = row[f"attr_{slot}"], row[f"conf_{slot}"]
    return {
        "slot": SLOT_NAMES[slot],
        "value": value,  # None where the caption does not say
        "empty": value == NONE,
        "swatch": value if slot.endswith("_color") and value in COLORS else None,
        "confidence": math.exp(min(logprob, 0.0)) if logprob is not None else None,
    }


def image_flags(path: Path) -> dict[str, list[str]]:
    """Return the flags of each flagged image, from flags.parquet."""
    return {row["image_path"]: row["flags"] for row in read_rows(path, ("image_path", "flags")) if row["flags"]}


def audit_section(
    folder: Path, captions: Path, thumbnail: Thumbnails, *, identities: int, identity_images: int
) -> dict[str, Any]:
    """Return the audit: a row a slot, the counts of flags, and the identities whose captions agree least."""
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    people = _people(read_rows(captions, ("pid", "split")))
    rows = [row for row in read_rows(folder / "identities.parquet") if row["pid"] in people]
    worst = _worst_identities(rows, identities)
    return {
        "summary": {name: value for name, value in audit.items() if isinstance(value, int)},
        "slots": [_slot(slot, audit["slots"][slot]) for slot in SLOTS if slot in audit["slots"]],
        "flags": [
            {"name": flag, "count": count, "meaning": FLAGS.get(flag, "")}
            for flag, count in sorted(audit["flags"].items(), key=lambda pair: (-pair[1], pair[0]))
        ],
        "worst": [_identity(entry, captions, thumbnail, identity_images) for entry in worst],
    }


def _people(rows: Sequence[Row]) -> set[int]:
    pids = [row["pid"] for row in rows]
    return set(compress(pids, is_person([row["split"] for row in rows], pids)))


def _slot(slot: str, figures: Row) -> dict[str, Any]:
    ordered = sorted(figures["values"].items(), key=lambda pair: (-pair[1], pair[0]))
    total = sum(count for _, count in ordered) or 1
    rest = sum(count for _, count in ordered[_TOP_VALUES:])
    return {
        "name": SLOT_NAMES[slot],
        "agreement": figures["agreement"],
        "coverage": figures["coverage"],
        "entropy": figures["entropy"],
        "values": [{"value": value, "share": count / total} for value, count in ordered[:_TOP_VALUES]],
        "rest": {"n": len(ordered) - _TOP_VALUES, "share": rest / total} if rest else None,
    }


def _worst_identities(rows: Sequence[Row], count: int) -> list[dict[str, Any]]:
    by_pid: dict[int, list[Row]] = {}
    for row in rows:
        # A single image always agrees with itself.
        if row["n_named"] > 1 and row["agreement"] is not None:
            by_pid.setdefault(row["pid"], []).append(row)
    entries = [
        {"pid": pid, "slots": slots, "agreement": sum(row["agreement"] for row in slots) / len(slots)}
        for pid, slots in by_pid.items()
    ]
    entries.sort(key=lambda entry: (entry["agreement"], entry["pid"]))
    return entries[:count]


def _identity(entry: Row, captions: Path, thumbnail: Thumbnails, count: int) -> dict[str, Any]:
    slots = sorted(entry["slots"], key=lambda row: (row["agreement"], SLOTS.index(row["slot"])))
    slots = [row for row in slots if row["agreement"] < 1][:_WORST_SLOTS]
    named = [row["slot"] for row in slots]
    images = read_rows(captions, ["image_path", "camid", *(f"attr_{slot}" for slot in named)], pid=entry["pid"])
    return {
        "pid": entry["pid"],
        "agreement": entry["agreement"],
        "n_images": len(images),
        "conflicts": [
            {
                "slot": SLOT_NAMES[row["slot"]],
                "agreement": row["agreement"],
                "values": sorted(json.loads(row["values"]).items(), key=lambda pair: (-pair[1], pair[0])),
            }
            for row in slots
        ],
        "slot_shown": SLOT_NAMES[named[0]] if named else None,
        "images": [
            {
                "image": thumbnail(row["image_path"]),
                "path": row["image_path"],
                "camid": row["camid"],
                "value": row[f"attr_{named[0]}"] if named else None,
                "dissents": bool(named) and row[f"attr_{named[0]}"] not in (None, slots[0]["majority"]),
            }
            for row in images[:count]
        ],
    }
