"""captions.audit.html: a self-contained page with the figures of the audit and the captions to look at first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from captioning.audit.choice import Choice, Row, Shown, Worst
from captioning.audit.flags import FLAGS
from captioning.audit.words import degrading_words
from captioning.config import AuditConfig
from data.errors import counted
from data.people import UNKNOWN_CAMERA, IdentityName
from data.slots import SLOTS

if TYPE_CHECKING:
    from data.images.thumbnails import Thumbnail

TEMPLATE: Final = Path(__file__).with_name("audit.html.j2")
_TOP_VALUES: Final = 8

Picture = Callable[[str], "Thumbnail"]
"""image_path -> its thumbnail."""


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
    chosen: Choice, shown: Shown, summary: Mapping[str, Any], config: AuditConfig, *, dataset: str, picture: Picture
) -> str:
    """Return the page as HTML, all text of captions escaped; the same rows and pictures give the same bytes.

    dataset: its name. picture: returns the thumbnail of an image.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["share"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["counted"] = counted
    cards = _Cards(chosen, shown, picture)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        audit=summary,
        dataset=dataset,
        low=config.low_agreement,
        splits=chosen.splits,
        slots=[_slot(slot, summary["slots"][slot]) for slot in SLOTS],
        worst=[cards.identity(worst) for worst in chosen.worst],
        flags=[cards.flag(flag) for flag in FLAGS],
    )


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


class _Cards(NamedTuple):
    """Builds the parts of the page that show captions."""

    chosen: Choice
    shown: Shown
    picture: Picture

    def identity(self, worst: Worst) -> Identity:
        """Return an identity whose captions differ, with some of its captions."""
        identities, group = self.chosen.identities, worst.group
        order = np.argsort(identities.agreement[group], kind="stable").tolist()
        differing = [at for at in order if self._differs(group, at)]
        tallies = {row["slot"]: row["values"] for row in identities.table(group, group + 1).to_pylist()}
        majorities = {SLOTS[at]: identities.majority_text(group, at) for at in differing}
        return Identity(
            identity=self.shown.names(int(identities.pids[group])),
            agreement=worst.agreement,
            n_images=int(identities.n_images[group]),
            splits=worst.splits,
            rows=[
                Disagreement(
                    name=_title(SLOTS[at]),
                    agreement=float(identities.agreement[group, at]),
                    tally=_tally(json.loads(tallies[SLOTS[at]])),
                )
                for at in differing
            ],
            shown=[self._card(number, _answers(self.shown.rows[number], majorities)) for number in worst.captions],
        )

    def _differs(self, group: int, slot: int) -> bool:
        identities = self.chosen.identities
        return bool(identities.n_named[group, slot] >= 2 and identities.agreement[group, slot] < 1)

    def flag(self, flag: str) -> Flag:
        """Return one flag with some of its captions."""
        counts = self.chosen.counts[flag]
        return Flag(
            name=flag,
            title=_title(flag),
            meaning=FLAGS[flag],
            count=sum(counts.values()),
            by_split=counts,
            examples=[self._card(number, self._notes(flag, number)) for number in self.chosen.flagged[flag]],
        )

    def _card(self, number: int, notes: Sequence[Note]) -> Card:
        row = self.shown.rows[number]
        return Card(
            path=row["image_path"],
            identity=self.shown.names(row["pid"]),
            camid="?" if row["camid"] == UNKNOWN_CAMERA else row["camid"],
            split=row["split"],
            text=row["raw_text"] or row["error"] or "no text",
            notes=notes,
            image=self.picture(row["image_path"]),
        )

    def _notes(self, flag: str, number: int) -> list[Note]:
        """Return what is doubtful about a caption with `flag`."""
        row, identities = self.shown.rows[number], self.chosen.identities
        texts: list[str] = []
        if flag == "dissent":
            (group,) = identities.of(np.array([row["pid"]])).tolist()
            for at in np.flatnonzero(self.chosen.dissents[number]).tolist():
                most = identities.majority_text(group, at)
                texts.append(f"{_title(SLOTS[at])}: {row[f'attr_{SLOTS[at]}']}, most say {most}")
        elif flag == "degrading":
            texts = [*degrading_words(row["raw_text"])]
        return [Note(text, doubtful=True) for text in texts]


def _answers(row: Row, majorities: Mapping[str, str | None]) -> list[Note]:
    """Return what a caption answers in the slots of `majorities`; an answer against the majority is doubtful."""
    answers = ((slot, row[f"attr_{slot}"]) for slot in majorities)
    return [Note(f"{_title(slot)}: {value}", value != majorities[slot]) for slot, value in answers if value]


def _tally(values: Mapping[str, int]) -> list[Count]:
    """Return the counts, the most frequent first, equal ones by name."""
    return [Count(*pair) for pair in sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))]


def _title(name: str) -> str:
    return name.replace("_", " ")
