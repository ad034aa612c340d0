"""The language part of the report: captions with their attributes, and how far the captions of an identity agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow.parquet as pq

from captioning.audit.flags import FLAGS
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import JUNK, IdentityName, Names, is_person
from data.slots import COLORS, NONE, SLOTS
from flows.report.gather import Row, counts, draw_evenly, read_rows, take_rows

SLOT_NAMES: Final = {slot: slot.replace("_", " ") for slot in SLOTS}
STATUS_MEANINGS: Final = {
    "ok": "parsed into attributes",
    "unparsed": "the text does not mention a known attribute",
    "truncated": "the reply reached the token limit",
    "image_error": "the image could not be read, so the text is missing",
    "server_error": "the captioning server sent no usable reply, so the text is missing",
    "missing": "no caption was imported, or the dataset has no such sentence",
    "wrong": "a person marked the text as wrong, so it is not used",
}
"""Status of a caption -> its meaning."""
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


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One attribute of a caption. value: None where the caption does not mention it. empty: it is known to be absent.

    swatch: name of the color to show. confidence: probability (0 to 1) that the captioner gave its answer.
    """

    slot: str
    value: str | None
    empty: bool
    swatch: str | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class CaptionCard:
    """One caption with its image. raw: the raw text where it differs. attributes: part of the body -> its chips."""

    path: str
    split: str
    identity: IdentityName
    camid: int
    image: Thumbnail
    caption: str
    raw: str
    status: str
    error: str | None
    attributes: Mapping[str, Sequence[Chip]]
    flags: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many captions or flags have one name, and what the name means."""

    name: str
    count: int
    meaning: str


@dataclass(frozen=True, kw_only=True)
class CaptionSection:
    """Captions on the page: how many there are of each status, and some of the parsed and of the failed ones.

    corrected: captions that people or other tools have changed.
    """

    total: int
    n_ok: int
    statuses: Sequence[Tally]
    cards: Sequence[CaptionCard]
    failed: Sequence[CaptionCard]
    corrected: int = 0

    @property
    def with_confidence(self) -> bool:
        """Return True if a card shows the probability of an answer."""
        chips = (chip for card in self.cards for part in card.attributes.values() for chip in part)
        return any(chip.confidence is not None for chip in chips)


class Share(NamedTuple):
    """A value of a slot, and its share (0 to 1) of the captions that answer the slot."""

    value: str
    share: float


class Rest(NamedTuple):
    """The values of a slot that are not listed: their number, and their share together."""

    n: int
    share: float


@dataclass(frozen=True, kw_only=True)
class SlotFigures:
    """One attribute over all captions: shares (0 to 1), entropy in bits, its most frequent values."""

    name: str
    agreement: float | None
    coverage: float
    entropy: float | None
    values: Sequence[Share]
    rest: Rest | None


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """An attribute on which the captions of one identity differ. values: each with its number of captions."""

    slot: str
    values: Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class IdentityImage:
    """One image of an identity with its answer to the slot shown. dissents: another answer is more frequent."""

    image: Thumbnail
    path: str
    camid: int
    value: str | None
    dissents: bool


@dataclass(frozen=True, kw_only=True)
class IdentityCard:
    """An identity whose captions differ. slot_shown: the attribute named below its images."""

    identity: IdentityName
    agreement: float
    n_images: int
    conflicts: Sequence[Conflict]
    slot_shown: str | None
    images: Sequence[IdentityImage]


@dataclass(frozen=True, kw_only=True)
class AuditSection:
    """Figures of the audit. summary: name -> count. worst: the identities whose captions agree least."""

    summary: Mapping[str, int]
    slots: Sequence[SlotFigures]
    flags: Sequence[Tally]
    worst: Sequence[IdentityCard]


def caption_section(
    path: Path,
    flags: Mapping[str, Sequence[str]],
    thumbnail: Thumbnails,
    *,
    shown: int,
    failed: int,
    seed: int,
    names: Names,
) -> CaptionSection:
    """Choose captions of captions.parquet: parsed ones spread over identities, failed ones over statuses.

    names: of the identities.
    """
    rows = read_rows(path, ("pid", "status"))
    good = [index for index, row in enumerate(rows) if row["status"] == "ok" and row["pid"] != JUNK]
    bad = [index for index, row in enumerate(rows) if row["status"] != "ok"]
    good_at = draw_evenly([rows[index]["pid"] for index in good], shown, seed=seed, name="caption")
    bad_at = draw_evenly([rows[index]["status"] for index in bad], failed, seed=seed, name="failed")

    def cards(indices: list[int]) -> list[CaptionCard]:
        return [_card(row, flags, thumbnail, names) for row in take_rows(path, indices)]

    return CaptionSection(
        total=len(rows),
        n_ok=sum(row["status"] == "ok" for row in rows),
        statuses=[
            Tally(name=status, count=count, meaning=STATUS_MEANINGS.get(status, ""))
            for status, count in counts(row["status"] for row in rows)
        ],
        cards=cards([good[at] for at in good_at]),
        failed=sorted(cards([bad[at] for at in bad_at]), key=lambda card: card.status),
        corrected=_corrected(path),
    )


def _corrected(path: Path) -> int:
    """Return the number of captions in captions.parquet that are not the model's."""
    if "source" not in pq.read_schema(path).names:
        return 0
    return sum(row["source"] != "model" for row in read_rows(path, ("source",)))


def _card(row: Row, flags: Mapping[str, Sequence[str]], thumbnail: Thumbnails, names: Names) -> CaptionCard:
    caption, raw = row["caption"] or "", row["raw_text"] or ""
    answered = any(row[f"attr_{slot}"] is not None for slot in SLOTS)
    return CaptionCard(
        path=row["image_path"],
        split=row["split"],
        identity=names(row["pid"]),
        camid=row["camid"],
        image=thumbnail(row["image_path"]),
        caption=caption,
        raw=raw if raw.strip() != caption.strip() else "",
        status=row["status"],
        error=row["error"],
        attributes={part: [_chip(slot, row) for slot in slots] for part, slots in _CARD_ROWS.items() if answered},
        flags=flags.get(row["image_path"], ()),
    )


def _chip(slot: str, row: Row) -> Chip:
    value, logprob = row[f"attr_{slot}"], row[f"conf_{slot}"]
    return Chip(
        slot=SLOT_NAMES[slot],
        value=value,
        empty=value == NONE,
        swatch=value if slot.endswith("_color") and value in COLORS else None,
        confidence=math.exp(min(logprob, 0.0)) if logprob is not None else None,
    )


def image_flags(path: Path) -> dict[str, list[str]]:
    """Return the flags of each flagged image, from flags.parquet."""
    return {row["image_path"]: row["flags"] for row in read_rows(path, ("image_path", "flags")) if row["flags"]}


def audit_section(
    folder: Path, captions: Path, thumbnail: Thumbnails, *, identities: int, identity_images: int, names: Names
) -> AuditSection:
    """Read the figures of an audit artifact, and choose the identities whose captions agree least.

    captions: captions.parquet, whose distractors and junk are left out. names: of the identities.
    """
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    people = _people(read_rows(captions, ("pid", "split")))
    rows = [row for row in read_rows(folder / "identities.parquet") if row["pid"] in people]
    worst = _worst_identities(rows, identities)
    return AuditSection(
        summary={name: value for name, value in audit.items() if isinstance(value, int)},
        slots=[_slot(slot, audit["slots"][slot]) for slot in SLOTS if slot in audit["slots"]],
        flags=[
            Tally(name=flag, count=count, meaning=FLAGS.get(flag, "")) for flag, count in _most_frequent(audit["flags"])
        ],
        worst=[_identity(names(pid), slots, captions, thumbnail, identity_images) for pid, slots in worst],
    )


def _people(rows: Sequence[Row]) -> set[int]:
    pids = [row["pid"] for row in rows]
    return set(compress(pids, is_person([row["split"] for row in rows], pids)))


def _most_frequent(tally: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return names with their counts, the most frequent first, equal ones by name."""
    return sorted(tally.items(), key=lambda pair: (-pair[1], pair[0]))


def _slot(slot: str, figures: Row) -> SlotFigures:
    ordered = _most_frequent(figures["values"])
    total = sum(count for _, count in ordered) or 1
    rest = sum(count for _, count in ordered[_TOP_VALUES:])
    return SlotFigures(
        name=SLOT_NAMES[slot],
        agreement=figures["agreement"],
        coverage=figures["coverage"],
        entropy=figures["entropy"],
        values=[Share(value, count / total) for value, count in ordered[:_TOP_VALUES]],
        rest=Rest(len(ordered) - _TOP_VALUES, rest / total) if rest else None,
    )


def _worst_identities(rows: Sequence[Row], count: int) -> list[tuple[int, list[Row]]]:
    """Return up to `count` identities with their rows of identities.parquet, the least mean agreement first."""
    by_pid: dict[int, list[Row]] = {}
    for row in rows:
        # A single image always agrees with itself.
        if row["n_named"] > 1 and row["agreement"] is not None:
            by_pid.setdefault(row["pid"], []).append(row)
    return sorted(by_pid.items(), key=lambda pair: (_mean_agreement(pair[1]), pair[0]))[:count]


def _mean_agreement(slots: Sequence[Row]) -> float:
    return float(sum(row["agreement"] for row in slots) / len(slots))


def _identity(
    identity: IdentityName, slots: Sequence[Row], captions: Path, thumbnail: Thumbnails, count: int
) -> IdentityCard:
    ordered = sorted(slots, key=lambda row: (row["agreement"], SLOTS.index(row["slot"])))
    differing = [row for row in ordered if row["agreement"] < 1][:_WORST_SLOTS]
    shown = differing[0] if differing else None
    columns = ["image_path", "camid", *([f"attr_{shown['slot']}"] if shown else [])]
    images = read_rows(captions, columns, pid=identity.pid)
    return IdentityCard(
        identity=identity,
        agreement=_mean_agreement(slots),
        n_images=len(images),
        conflicts=[
            Conflict(slot=SLOT_NAMES[row["slot"]], values=_most_frequent(json.loads(row["values"])))
            for row in differing
        ],
        slot_shown=SLOT_NAMES[shown["slot"]] if shown else None,
        images=[_image(row, shown, thumbnail) for row in images[:count]],
    )


def _image(row: Row, shown: Row | None, thumbnail: Thumbnails) -> IdentityImage:
    """Return one image with its answer to the slot of `shown`, a row of identities.parquet, if there is one."""
    value = row[f"attr_{shown['slot']}"] if shown else None
    return IdentityImage(
        image=thumbnail(row["image_path"]),
        path=row["image_path"],
        camid=row["camid"],
        value=value,
        dissents=shown is not None and value not in (None, shown["majority"]),
    )
