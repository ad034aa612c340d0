"""Caption patterns: sentences of clauses, each with fixed words and one phrase that answers slots.

`compose` writes a caption from known slots, slot-filling decoding feeds the fixed words to the model and lets it choose
only the phrases, and the template digest covers the pattern. A phrase whose slots are unknown or empty drops its
clause, and a sentence without clauses is dropped too: a caption never negates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

from pydantic import field_validator

from data.config import Config
from data.errors import ConfigError
from data.slots import NONE, SLOTS, VOCABULARY

Slots = Mapping[str, str | None]
"""Slot -> value, or None if unknown."""

PATTERN_VERSION: Final = 1
"""Raise it whenever the text of a phrase changes, so that all images are captioned again."""

END: Final = "."
SPACE: Final = " "

_NOUNS: Final = {"male": "man", "female": "woman", None: "person"}
_MASS_WORDS: Final = frozenset({"clothing", "food", "footwear", "luggage", "mail", "paper", "trash", "water"})
_HAIR_PHRASES: Final = {"ponytail": "a ponytail", "bun": "a bun", "bald": "a bald head", "pigtails": "pigtails"}
_UNKNOWN_TYPE: Final = {"upper": "upper garment", "lower": "lower garment"}


class Clause(Config):
    """One phrase and the fixed words before it."""

    phrase: str
    """Name of the phrase that ends the clause: upper, lower, carrying, hair, or any other slot."""
    first: str
    """Fixed words before the phrase in the first clause of the sentence, such as " is carrying "."""
    later: str
    """Fixed words before the phrase after another clause, such as " and carrying "."""

    @field_validator("phrase")
    @classmethod
    def _phrase_exists(cls, phrase: str) -> str:
        if phrase not in PHRASES:
            raise ValueError(f"unknown phrase {phrase!r}: expected one of {', '.join(PHRASES)}")
        return phrase


class Sentence(Config):
    """A subject and its clauses."""

    introduces: bool = False
    """True: the subject is the phrase "A young woman", whose words are chosen, and the sentence is always kept. False:
    the subject is "The woman", which follows from the gender, and the sentence is dropped with its last clause."""
    clauses: tuple[Clause, ...]
    """The clauses, in text order."""


Pattern = tuple[Sentence, ...]


def with_article(noun: str) -> str:
    """Return `noun` with "a" or "an"; plurals, mass words and the empty text stay as they are ("blue jeans")."""
    last = noun.rsplit(" ", 1)[-1]
    if not noun or last in _MASS_WORDS or (last.endswith("s") and not last.endswith("ss")):
        return noun
    vowel = noun[:1] in "aeiou" and not noun.startswith(("uni", "one", "eu"))
    return f"{'an' if vowel else 'a'} {noun}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One possible answer of a phrase. text: empty if nothing is visible; the clause is then dropped."""

    values: tuple[tuple[str, str | None], ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """The slots that a phrase answers. render: turns their values into words, "" if there is nothing to say."""

    slots: tuple[str, ...]
    render: Callable[[Slots], str]

    def choices(self) -> tuple[Choice, ...]:
        """Return all answers over the closed vocabularies; the last one is the dropped clause (all values None).

        The texts are distinct: an empty slot reads like an invisible one, so the value "none" is left out.
        """
        return _choices(self)


@cache
def _choices(phrase: Phrase) -> tuple[Choice, ...]:
    options = [[*(value for value in VOCABULARY[slot] if value != NONE), None] for slot in phrase.slots]
    rows = [tuple(zip(phrase.slots, values, strict=True)) for values in product(*options)]
    return tuple(Choice(values=row, text=phrase.render(dict(row))) for row in rows)


def _person(slots: Slots) -> str:
    words = (slots["age"], _noun(slots))
    return with_article(" ".join(word for word in words if word)).capitalize()


def _noun(slots: Slots) -> str:
    gender = slots["gender"]
    if gender not in _NOUNS:
        raise ConfigError(f"invalid gender {gender!r}: expected male, female or null")
    return _NOUNS[gender]


def _garment(part: str) -> Callable[[Slots], str]:
    def render(slots: Slots) -> str:
        color, kind = slots[f"{part}_color"], slots[f"{part}_type"]
        if not (color or kind):
            return ""
        return with_article(" ".join(word for word in (color, kind or _UNKNOWN_TYPE[part]) if word))

    return render


def _carrying(slots: Slots) -> str:
    things = [with_article(thing) for thing in (slots["carrying"] or "").split(", ") if thing]
    return " and ".join(part for part in (", ".join(things[:-1]), *things[-1:]) if part)


def _hair(slots: Slots) -> str:
    hair = slots["hair"]
    return _HAIR_PHRASES.get(hair, f"{hair} hair") if hair else ""


def _noun_of(slot: str) -> Callable[[Slots], str]:
    return lambda slots: with_article(slots[slot] or "")


PERSON: Final = Phrase(slots=("age", "gender"), render=_person)
"""The subject of the sentence that introduces the person: "An elderly woman"."""

_WITH_OWN_WORDS: Final = {
    "upper": Phrase(slots=("upper_color", "upper_type"), render=_garment("upper")),
    "lower": Phrase(slots=("lower_color", "lower_type"), render=_garment("lower")),
    "carrying": Phrase(slots=("carrying",), render=_carrying),
    "hair": Phrase(slots=("hair",), render=_hair),
}
_ANSWERED: Final = {slot for phrase in (PERSON, *_WITH_OWN_WORDS.values()) for slot in phrase.slots}

PHRASES: Final[dict[str, Phrase]] = _WITH_OWN_WORDS | {
    slot: Phrase(slots=(slot,), render=_noun_of(slot)) for slot in SLOTS if slot not in _ANSWERED
}
"""The phrases of clauses, by name. A slot without words of its own is its value with an article ("a cap")."""

_WEARING_SHOES_CARRYING: Final = Sentence(
    clauses=(
        Clause(phrase="shoes", first=" is wearing ", later=" and "),
        Clause(phrase="carrying", first=" is carrying ", later=" and carrying "),
    )
)
_HAIR_AND_GLASSES: Final = Sentence(
    clauses=(
        Clause(phrase="hair", first=" has ", later=" and "),
        Clause(phrase="glasses", first=" has ", later=" and "),
    )
)
_UPPER: Final = Clause(phrase="upper", first=" is wearing ", later=" and ")
_LOWER: Final = Clause(phrase="lower", first=" is wearing ", later=" and ")

PAPER_PATTERN: Final[Pattern] = (
    Sentence(introduces=True, clauses=(_UPPER, _LOWER)),
    _WEARING_SHOES_CARRYING,
    _HAIR_AND_GLASSES,
)
"""The three sentences of CLIP-SCGI, section 3.2."""

PORT_PATTERN: Final[Pattern] = (
    Sentence(introduces=True, clauses=(_UPPER,)),
    Sentence(clauses=(_LOWER,)),
    _WEARING_SHOES_CARRYING,
    _HAIR_AND_GLASSES,
)
"""The four sentences of the public port's 45-word template."""


def stated_slots(pattern: Pattern) -> frozenset[str]:
    """Return the slots that a caption in the words of `pattern` states."""
    phrases = [PHRASES[clause.phrase] for sentence in pattern for clause in sentence.clauses]
    person = [PERSON for sentence in pattern if sentence.introduces]
    return frozenset(slot for phrase in (*person, *phrases) for slot in phrase.slots)


def back_reference(slots: Slots) -> str:
    """Return the subject of every later sentence: "The woman", "The man" or "The person"."""
    return f"The {_noun(slots)}"


def compose(slots: Slots, pattern: Pattern = PAPER_PATTERN) -> str:
    """Return the caption that states the known values of `slots` in the words of `pattern`.

    slots: slot name -> value, None (unknown) or "none" (empty); an absent slot is unknown. Raises ConfigError for an
    unknown slot name or gender.
    """
    unknown = sorted(set(slots) - set(SLOTS))
    if unknown:
        raise ConfigError(f"unknown slot {', '.join(unknown)}: expected {', '.join(SLOTS)}")
    known = {slot: None if slots.get(slot) in (NONE, "") else slots.get(slot) for slot in SLOTS}
    return SPACE.join(text for sentence in pattern if (text := _sentence(sentence, known)))


def _sentence(sentence: Sentence, known: Slots) -> str:
    spoken = [(clause, PHRASES[clause.phrase].render(known)) for clause in sentence.clauses]
    kept = [(clause, phrase) for clause, phrase in spoken if phrase]
    if not kept and not sentence.introduces:
        return ""
    subject = PERSON.render(known) if sentence.introduces else back_reference(known)
    words = [(clause.later if i else clause.first) + phrase for i, (clause, phrase) in enumerate(kept)]
    return subject + "".join(words) + END
