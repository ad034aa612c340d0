"""The language part of the report: captions with their attributes, and how far the captions of an identity agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captioning.audit.flags import FLAGS
from data.columns.distinct import one_array
from data.columns.source import ParquetRows
from data.images.thumbnails import Thumbnail, Thumbnails
from data.people import IdentityName, Names, is_junk, is_person
from data.slots import COLORS, NONE, SLOTS
from flows.report.gather import Ints, Row, counts, draw_evenly, rows_where, take_rows

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
    flags: Path,
    thumbnail: Thumbnails,
    *,
    shown: int,
    failed: int,
    seed: int,
    names: Names,
) -> CaptionSection:
    """Choose captions of captions.parquet: parsed ones spread over identities, failed ones over statuses.

    flags: flags.parquet of the audit. names: of the identities.
    """
    table = pq.read_table(path, columns=["pid", "status"])
    is_ok = pc.equal(table["status"], "ok").to_numpy()
    good, bad = np.flatnonzero(is_ok & ~is_junk(table["pid"].to_numpy())), np.flatnonzero(~is_ok)
    good_at = draw_evenly(table["pid"].take(pa.array(good)), shown, seed=seed, name="caption")
    bad_at = draw_evenly(table["status"].take(pa.array(bad)), failed, seed=seed, name="failed")

    def cards(places: Ints) -> list[CaptionCard]:
        rows = take_rows(path, places.tolist())
        raised = _flags_of(flags, [row["image_path"] for row in rows])
        return [_card(row, raised, thumbnail, names) for row in rows]

    return CaptionSection(
        total=len(is_ok),
        n_ok=int(is_ok.sum()),
        statuses=[
            Tally(name=status, count=count, meaning=STATUS_MEANINGS.get(status, ""))
            for status, count in counts(table["status"])
        ],
        cards=cards(good[good_at]),
        failed=sorted(cards(bad[bad_at]), key=lambda card: card.status),
        corrected=_corrected(path),
    )


def _corrected(path: Path) -> int:
    """Return the number of captions in captions.parquet that are not the model's."""
    source = ParquetRows(path)
    if "source" not in source.names:
        return 0
    unchanged = (pc.sum(pc.equal(rows["source"], "model")).as_py() or 0 for rows in source.batches("source"))
    return source.n_rows - sum(unchanged)


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


def _flags_of(file: Path, paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of images, from flags.parquet."""
    rows = rows_where(file, "image_path", paths, ("image_path", "flags")) if paths else []
    return {row["image_path"]: row["flags"] for row in rows if row["flags"]}


def audit_section(
    folder: Path, captions: Path, thumbnail: Thumbnails, *, identities: int, identity_images: int, names: Names
) -> AuditSection:
    """Read the figures of an audit artifact, and choose the identities whose captions agree least.

    captions: captions.parquet, whose distractors and junk are left out. names: of the identities.
    """
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    worst = _worst_identities(folder / "identities.parquet", _people(captions), identities)
    return AuditSection(
        summary={name: value for name, value in audit.items() if isinstance(value, int)},
        slots=[_slot(slot, audit["slots"][slot]) for slot in SLOTS if slot in audit["slots"]],
        flags=[
            Tally(name=flag, count=count, meaning=FLAGS.get(flag, "")) for flag, count in _most_frequent(audit["flags"])
        ],
        worst=[_identity(names(pid), slots, captions, thumbnail, identity_images) for pid, slots in worst],
    )


def _people(captions: Path) -> Ints:
    """Return the identities of the images that show a person, sorted."""
    rows = pq.read_table(captions, columns=["pid", "split"])
    pids, split = rows["pid"].to_numpy(), one_array(rows["split"].dictionary_encode())
    names = np.array(split.dictionary.to_pylist(), dtype=object)
    return np.unique(pids[is_person(names[split.indices.to_numpy()], pids)])


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


def _worst_identities(file: Path, people: Ints, count: int) -> list[tuple[int, list[Row]]]:
    """Return up to `count` of `people` with their rows of identities.parquet, the least mean agreement first."""
    table = pq.read_table(file, columns=["pid", "n_named", "agreement"])
    # A single image always agrees with itself.
    measured = table.filter(pc.and_(pc.greater(table["n_named"], 1), pc.is_valid(table["agreement"])))
    pid, agreement = measured["pid"].to_numpy(), measured["agreement"].to_numpy()
    order = np.argsort(pid, kind="stable")
    pids, starts = np.unique(pid[order], return_index=True)
    means = np.array([_mean(part.tolist()) for part in np.split(agreement[order], starts[1:])]) if len(pids) else starts
    worst = pids[np.lexsort((pids, means))]
    chosen = worst[np.isin(worst, people)][:count].tolist()
    found: dict[int, list[Row]] = {pid: [] for pid in chosen}
    for row in rows_where(file, "pid", chosen) if chosen else ():
        if row["n_named"] > 1 and row["agreement"] is not None:
            found[row["pid"]].append(row)
    return list(found.items())


def _mean(agreements: Sequence[float]) -> float:
    return float(sum(agreements) / len(agreements))


def _identity(
    identity: IdentityName, slots: Sequence[Row], captions: Path, thumbnail: Thumbnails, count: int
) -> IdentityCard:
    ordered = sorted(slots, key=lambda row: (row["agreement"], SLOTS.index(row["slot"])))
    differing = [row for row in ordered if row["agreement"] < 1][:_WORST_SLOTS]
    shown = differing[0] if differing else None
    columns = ["image_path", "camid", *([f"attr_{shown['slot']}"] if shown else [])]
    images = rows_where(captions, "pid", [identity.pid], columns)
    return IdentityCard(
        identity=identity,
        agreement=_mean([row["agreement"] for row in slots]),
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
