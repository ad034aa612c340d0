"""The shape of a caption: sentences of clauses, each with fixed words and one phrase that answers slots.

One structure serves three readers: `compose` writes a caption from known slots, slot-filling decoding feeds the fixed
words to the model and lets it choose only the phrases, and the template digest covers it. A phrase whose slots are
unknown (or known to be empty) drops its clause, and a sentence without clauses goes too: a caption never negates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final, Literal

from data.config import Config
from data.errors import ConfigError
from data.slots import NONE, SLOTS, VOCABULARY

Slots = Mapping[str, str | None]
PhraseName = Literal["upper", "lower", "shoes", "carrying", "hair", "glasses"]

PATTERN_VERSION: Final = 1
"""Raised whenever the text of a phrase changes, so that captions are made anew."""

END: Final = "."
SPACE: Final = " "

_NOUNS: Final = {"male": "man", "female": "woman", None: "person"}
_MASS_WORDS: Final = frozenset({"clothing", "food", "footwear", "luggage", "mail", "paper", "trash", "water"})
_HAIR_PHRASES: Final = {"ponytail": "a ponytail", "bun": "a bun", "bald": "a bald head", "pigtails": "pigtails"}
_UNKNOWN_TYPE: Final = {"upper": "upper garment", "lower": "lower garment"}


class Clause(Config):
    """One phrase and the fixed words before it."""

    phrase: PhraseName
    """Which phrase the clause ends with."""
    first: str
    """Fixed words before the phrase when this is the first clause kept in its sentence, such as " is carrying "."""
    later: str
    """Fixed words before the phrase when another clause comes before it, such as " and carrying "."""


class Sentence(Config):
    """A subject and its clauses."""

    introduces: bool = False
    """True: the subject is the phrase "A young woman", to be decided, and the sentence always stays. False: it is
    "The woman", which follows from the gender, and the sentence goes when all its clauses do."""
    clauses: tuple[Clause, ...]
    """In the order of the text."""


Pattern = tuple[Sentence, ...]

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


def with_article(noun: str) -> str:
    """Return `noun` with "a" or "an", or as it is when it is plural or a mass word ("blue jeans", "luggage")."""
    last = noun.rsplit(" ", 1)[-1]
    if last in _MASS_WORDS or (last.endswith("s") and not last.endswith("ss")):
        return noun
    vowel = noun[:1] in "aeiou" and not noun.startswith(("uni", "one", "eu"))
    return f"{'an' if vowel else 'a'} {noun}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer a phrase can give. text is empty when nothing is visible: the clause is dropped."""

    values: tuple[tuple[str, str | None], ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """The slots a phrase answers, and how values become words ("" when there is nothing to say)."""

    slots: tuple[str, ...]
    render: Callable[[Slots], str]

    def choices(self) -> tuple[Choice, ...]:
        """Return every answer over the closed vocabularies, the dropped clause (all values None) last.

        Texts are distinct: a slot that is known to be empty reads like one that is not visible, so "none" is left out.
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
        raise ConfigError(f"gender {gender!r}: a caption can say only male, female or nothing")
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


def _plain(slot: str) -> Callable[[Slots], str]:
    return lambda slots: slots[slot] or ""


PERSON: Final = Phrase(slots=("age", "gender"), render=_person)
"""The subject of the sentence that introduces the person: "An elderly woman"."""

PHRASES: Final[dict[PhraseName, Phrase]] = {
    "upper": Phrase(slots=("upper_color", "upper_type"), render=_garment("upper")),
    "lower": Phrase(slots=("lower_color", "lower_type"), render=_garment("lower")),
    "shoes": Phrase(slots=("shoes",), render=_plain("shoes")),
    "carrying": Phrase(slots=("carrying",), render=_carrying),
    "hair": Phrase(slots=("hair",), render=_hair),
    "glasses": Phrase(slots=("glasses",), render=_plain("glasses")),
}
"""The phrase at the end of a clause, by the name clauses use."""


def back_reference(slots: Slots) -> str:
    """Return the subject of every later sentence: "The woman", "The man" or "The person"."""
    return f"The {_noun(slots)}"


def compose(slots: Slots, pattern: Pattern = PAPER_PATTERN) -> str:
    """Return the caption that says exactly what `slots` know, in the words of `pattern`.

    slots: slot name -> value, None (not known) or "none" (known to be empty); absent slots count as not known.
    Raises ConfigError for a name that is no slot or a gender that has no noun.
    """
    unknown = sorted(set(slots) - set(SLOTS))
    if unknown:
        raise ConfigError(f"no such slot: {', '.join(unknown)}; slots are {', '.join(SLOTS)}")
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
