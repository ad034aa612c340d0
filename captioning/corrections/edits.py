"""Edits of a caption, and the text and slots that follow from each.

One of text and slots leads, and the other follows: `parse_caption` reads the slots of a written text, and the pattern
of the template writes the text of given slots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from captioning.attributes.parse import parse_caption
from captioning.prompts.pattern import PAPER_PATTERN, Pattern, Slots, compose, stated_slots
from data.errors import ClipScgiError, raise_problems
from data.slots import GENDERS, NONE, SLOTS, VOCABULARY

Kind = Literal["text", "slots", "wrong", "reset"]

MAX_LENGTH: Final = 2000
"""Most characters of a caption; CLIP reads about 300."""
_END: Final = re.compile(r"[.;:!?\r\n\v\f\x85\u2028\u2029]")
_SHOWN: Final = 60  # characters of a value in a message


class EditError(ClipScgiError):
    """An edit that cannot be saved; the message says why, and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of the caption of an image.

    kind: what was done, and which of text and slots leads. text: of a text edit. slots: of a slots edit; a slot that is
    not named keeps its answer, and None removes it.
    """

    kind: Kind
    text: str | None = None
    slots: Slots | None = None

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Return an edit that replaces the caption by `text`."""
        return cls(kind="text", text=text)

    @classmethod
    def of_slots(cls, slots: Slots) -> Self:
        """Return an edit that answers `slots`, and keeps the answers of the others."""
        return cls(kind="slots", slots=slots)

    @classmethod
    def wrong(cls) -> Self:
        """Return an edit that marks the caption as wrong, without another text."""
        return cls(kind="wrong")

    @classmethod
    def reset(cls) -> Self:
        """Return an edit that keeps the model's text."""
        return cls(kind="reset")


@dataclass(frozen=True, kw_only=True)
class Content:
    """The text of a caption and all its slots; both None if there is no text (wrong, reset).

    slots: only stored where they lead; the slots of a text are read from it.
    """

    text: str | None = None
    slots: Mapping[str, str | None] | None = None


def content_of(edit: Edit, base: Slots, pattern: Pattern = ()) -> Content:
    """Return the text and the slots of an edit. Raises EditError, with all problems, for one that cannot be kept.

    base: the slots of the caption that is edited. pattern: of the template; the paper's if it has none.
    """
    if edit.kind == "text":
        return Content(text=checked_text(edit.text or ""))
    if edit.kind == "slots":
        return _composed(edit.slots or {}, base, pattern or PAPER_PATTERN)
    return Content()


def checked_text(text: str) -> str:
    """Return `text` with single spaces. Raises EditError if it cannot be a caption."""
    plain = " ".join(text.split())
    if not plain:
        raise EditError("the text of a caption is empty: write one, mark the caption as wrong, or reset it")
    if len(plain) > MAX_LENGTH:
        raise EditError(f"the text of a caption has {len(plain):,} characters: write at most {MAX_LENGTH:,}")
    if not plain.isprintable():
        raise EditError("the text of a caption contains control characters: remove them")
    return plain


def _composed(given: Slots, base: Slots, pattern: Pattern) -> Content:
    plain = {slot: " ".join(value.split()).lower() or None if value else None for slot, value in given.items()}
    raise_problems("slots", [*_problems(plain), *_sentences(given)], EditError)
    slots = {slot: base.get(slot) for slot in SLOTS} | plain
    if slots["carrying"]:
        slots["carrying"] = ", ".join(sorted(filter(None, (part.strip() for part in slots["carrying"].split(",")))))
    raise_problems("slots", _misread(slots, plain, pattern), EditError)
    return Content(text=checked_text(compose(slots, pattern)), slots=slots)


def _problems(given: Slots) -> Iterator[str]:
    """Yield slots and values that no caption can state."""
    if not given:
        yield f"none given: give at least one of {', '.join(SLOTS)}"
    for slot, value in given.items():
        if slot not in SLOTS:
            yield f"unknown slot {slot!r}: expected {', '.join(SLOTS)}"
        elif value is not None and not (value.isprintable() and len(value) <= MAX_LENGTH):
            yield f"{slot}: the value is too long or contains control characters"
        elif slot == "gender" and value not in (*GENDERS, None):
            yield f"invalid gender {value!r}: expected {' or '.join(GENDERS)}, or nothing"


def _sentences(given: Slots) -> Iterator[str]:
    """Yield values that would end the sentence of their caption, and so say more than their slot."""
    for slot, value in given.items():
        if value and _END.search(value.strip()):
            yield f"{slot}: {value[:_SHOWN]!r} contains the end of a sentence or of a line; write a few words"


def _misread(slots: Slots, given: Slots, pattern: Pattern) -> Iterator[str]:
    """Yield values that the parser would not read back, so that the text would contradict the slots.

    given: the slots that the edit names. They have to be read back exactly, and leave what is read of others as it is.
    """
    read = parse_caption(compose(slots, pattern))
    without = parse_caption(compose({**slots, **dict.fromkeys(given)}, pattern))
    stated = stated_slots(pattern)
    for slot, value in slots.items():
        said = None if value == NONE else value
        if slot not in given:
            if read[slot] not in (without[slot], said):
                yield f"{slot}: would be read as {read[slot]!r} from the words of {', '.join(given)}; write other words"
        elif slot in stated and read[slot] != said:
            yield _unread(slot, said, read[slot])


def _unread(slot: str, value: str | None, read: str | None) -> str:
    if value is None:
        return f"{slot}: would be read as {read!r} from the words of the other slots; write other words there"
    if read is None:
        return (
            f"{slot}: {value[:_SHOWN]!r} is not read back from the caption; write one of {', '.join(VOCABULARY[slot])}"
        )
    return f"{slot}: {value[:_SHOWN]!r} would be read as {read!r}; write {read!r}"
