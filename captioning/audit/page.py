"""captions.audit.html: a self-contained page with the figures of the audit and the captions to look at first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from captioning.audit.flags import FLAGS, degrading_words
from captioning.config import AuditConfig
from data.errors import counted
from data.people import UNKNOWN_CAMERA, IdentityName, identity_names
from data.schemas import LABEL
from data.slots import SLOTS
from data.splits import SPLITS

if TYPE_CHECKING:
    import pandas as pd

    from data.images.thumbnails import Thumbnail

TEMPLATE: Final = Path(__file__).with_name("audit.html.j2")
_TOP_VALUES: Final = 8
_IMAGES: Final = 8  # of one identity
_IDENTITY: Final = "identity"  # column of `IdentityName`
_KEYS: Final = ("image_path", "pid", _IDENTITY, "camid", "split", "raw_text", "error")
_COLUMNS: Final = [*_KEYS, *(f"attr_{slot}" for slot in SLOTS)]

Picture = Callable[[str], "Thumbnail"]
"""image_path -> its thumbnail."""
Majorities = Mapping[Any, str]
"""(pid, slot) -> the value that most captions of the identity give."""


class Count(NamedTuple):
    """A value and the number of captions that give it."""

    value: str
    captions: int


class Note(NamedTuple):
    """A remark on one caption. doubtful: it stands out on the page."""

    text: str
    doubtful: bool


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One attribute over all captions. top: its most frequent values; more: how many other values it has."""

    name: str
    agreement: float
    coverage: float
    entropy: float
    top: Sequence[Count]
    more: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """One caption with its image. camid: "?" if it is unknown."""

    path: str
    identity: IdentityName
    camid: int | str
    split: str
    text: str
    notes: Sequence[Note]
    image: Thumbnail


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag: how many captions have it in each split, and some of them."""

    name: str
    title: str
    meaning: str
    count: int
    by_split: Mapping[str, int]
    examples: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """An attribute on which the captions of one identity differ."""

    name: str
    agreement: float
    tally: Sequence[Count]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """An identity whose captions differ. shown: some of its captions."""

    identity: IdentityName
    agreement: float
    n_images: int
    splits: Sequence[str]
    rows: Sequence[Disagreement]
    shown: Sequence[Card]


def audit_page(
    captions: pd.DataFrame,
    identities: pd.DataFrame,
    flags: pd.DataFrame,
    summary: Mapping[str, Any],
    config: AuditConfig,
    *,
    dataset: str,
    picture: Picture,
) -> str:
    """Return the page as HTML, all text of captions escaped; the same rows and pictures give the same bytes.

    dataset: its name. picture: returns the thumbnail of an image.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["share"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["counted"] = counted
    captions = captions.assign(**{_IDENTITY: _names(captions)})
    counts = captions["split"].value_counts()
    majorities = identities.set_index(["pid", "slot"])["majority"].to_dict()
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        audit=summary,
        dataset=dataset,
        low=config.low_agreement,
        splits={split: int(counts[split]) for split in SPLITS if split in counts},
        slots=[_slot(slot, summary["slots"][slot]) for slot in SLOTS],
        worst=_worst(identities, captions, config.shown, picture),
        flags=[_flag(flag, captions, flags, majorities, shown=config.shown, picture=picture) for flag in FLAGS],
    )


def _names(captions: pd.DataFrame) -> pd.Series[Any]:
    """Return the name of the identity of each caption."""
    labels = captions[LABEL.name] if LABEL.name in captions else [""] * len(captions)
    return captions["pid"].map(identity_names(captions["pid"], labels))


def _slot(slot: str, figures: Mapping[str, Any]) -> Slot:
    tally = _tally(figures["values"])
    return Slot(
        name=_title(slot),
        agreement=figures["agreement"],
        coverage=figures["coverage"],
        entropy=figures["entropy"],
        top=tally[:_TOP_VALUES],
        more=len(tally[_TOP_VALUES:]),
    )


def _worst(identities: pd.DataFrame, captions: pd.DataFrame, count: int, picture: Picture) -> list[Identity]:
    """Return the identities with the least mean agreement over the slots that at least two captions answer."""
    answered = identities[identities["n_named"] >= 2]
    mean = answered.groupby("pid")["agreement"].mean()
    # Stable, and groupby sorts by identity: equals stay in the order of their numbers.
    worst = mean[mean < 1].sort_values(kind="stable")[:count]
    return [
        _identity(agreement, answered[answered["pid"] == pid], captions[captions["pid"] == pid], picture)
        for pid, agreement in worst.to_dict().items()
    ]


def _identity(agreement: float, slots: pd.DataFrame, captions: pd.DataFrame, picture: Picture) -> Identity:
    differing = slots[slots["agreement"] < 1].sort_values("agreement", kind="stable").to_dict("records")
    majorities = {str(row["slot"]): row["majority"] for row in differing}
    shown = _records(captions.loc[_in_turn(captions, _IMAGES)])
    return Identity(
        identity=captions[_IDENTITY].iloc[0],
        agreement=agreement,
        n_images=int(slots["n_images"].iloc[0]),
        splits=[split for split in SPLITS if split in set(captions["split"])],
        rows=[
            Disagreement(name=_title(row["slot"]), agreement=row["agreement"], tally=_tally(json.loads(row["values"])))
            for row in differing
        ],
        shown=[_card(row, _answers(row, majorities), picture) for row in shown],
    )


def _answers(row: Mapping[str, Any], majorities: Mapping[str, str]) -> list[Note]:
    """Return what a caption answers in the slots of `majorities`; an answer against the majority is doubtful."""
    answers = ((slot, row[f"attr_{slot}"]) for slot in majorities)
    return [Note(f"{_title(slot)}: {value}", value != majorities[slot]) for slot, value in answers if value]


def _flag(
    flag: str,
    captions: pd.DataFrame,
    flags: pd.DataFrame,
    majorities: Majorities,
    *,
    shown: int,
    picture: Picture,
) -> Flag:
    marked = captions[flags[flag]]
    chosen = _in_turn(marked, shown)
    counts = marked["split"].value_counts()
    dissent = flags["dissent_slots"].loc[chosen].tolist()
    return Flag(
        name=flag,
        title=_title(flag),
        meaning=FLAGS[flag],
        count=len(marked),
        by_split={split: int(counts.get(split, 0)) for split in SPLITS},
        examples=[
            _card(row, _notes(flag, row, slots, majorities), picture)
            for row, slots in zip(_records(marked.loc[chosen]), dissent, strict=True)
        ],
    )


def _in_turn(rows: pd.DataFrame, count: int) -> list[Any]:
    """Return the index of up to `count` rows: splits take turns, and each shows every identity before any twice."""
    turn = rows.groupby("pid").cumcount().sort_values(kind="stable").index
    ordered = rows["split"].loc[turn]
    groups: Sequence[Sequence[Any]] = [ordered.index[ordered == split].tolist() for split in SPLITS]
    turns = chain.from_iterable(zip_longest(*(group[:count] for group in groups)))
    return [at for at in turns if at is not None][:count]


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows of captions.parquet as dictionaries, an empty text for every null."""
    columns = rows[_COLUMNS].astype(object)
    return [
        {str(key): value for key, value in row.items()} for row in columns.where(columns.notna(), "").to_dict("records")
    ]


def _card(row: Mapping[str, Any], notes: Sequence[Note], picture: Picture) -> Card:
    return Card(
        path=row["image_path"],
        identity=row[_IDENTITY],
        camid="?" if row["camid"] == UNKNOWN_CAMERA else row["camid"],
        split=row["split"],
        text=row["raw_text"] or row["error"] or "no text",
        notes=notes,
        image=picture(row["image_path"]),
    )


def _notes(flag: str, row: Mapping[str, Any], dissent: Sequence[str], majorities: Majorities) -> list[Note]:
    """Return what is doubtful about a caption with `flag`. dissent: its slots that contradict the majority."""
    texts: list[str] = []
    if flag == "dissent":
        texts = [f"{_title(slot)}: {row[f'attr_{slot}']}, most say {majorities[row['pid'], slot]}" for slot in dissent]
    elif flag == "degrading":
        texts = [*degrading_words(row["raw_text"])]
    return [Note(text, doubtful=True) for text in texts]


def _tally(values: Mapping[str, int]) -> list[Count]:
    """Return the counts, the most frequent first, equal ones by name."""
    return [Count(*pair) for pair in sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))]


def _title(name: str) -> str:
    return name.replace("_", " ")
