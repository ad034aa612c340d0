"""Parser of captions: attribute slots from any caption text, of `compose` and of LLaVA alike.

It uses rules and a lexicon, without a model or randomness:

* The first garment with a color is used ("a white shirt and a black jacket": a white shirt), otherwise the first one.
  Of a two-color garment the first color is used ("black and white shirt": black).
* A dress, suit or jumpsuit is an upper garment; the lower slots stay None unless another garment is named.
* All carried items are kept, without color, in alphabetical order: "backpack, cell phone".
* Age: young below 40 (also boy, girl, child), middle-aged below 60, elderly from 60.
* Hair is its style ("ponytail"), otherwise its length, otherwise its look ("black").
* "none" is a denial: no glasses, nothing carried, no shoes.
* Any other slot is the first noun whose kind in the lexicon is the name of the slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from captioning.attributes.carried import carried_items
from captioning.attributes.lexicon import (
    AGE_WORDS,
    AGE_WORDS_BEFORE_PERSON,
    COLOR_WORDS,
    GENDER_NOUNS,
    GENDER_PRONOUNS,
    HAIR_LENGTHS,
    HAIR_LOOKS,
    HAIR_STYLES,
    NEGATORS,
    PERSON_NOUNS,
    YOUNG_NOUNS,
)
from captioning.attributes.text import Mention, Segment, mentions, segments
from data.slots import NONE, SLOTS

_MIDDLE_AGED_FROM: Final = 40
_ELDERLY_FROM: Final = 60
_OLDEST: Final = 120
_DIGITS_OF_AGE: Final = 3
_TRAILING: Final = frozenset(("and", ",", "is"))
_DECADES: Final = {
    "teens": 15,
    "twenties": 20,
    "thirties": 30,
    "forties": 40,
    "fifties": 50,
    "sixties": 60,
    "seventies": 70,
    "eighties": 80,
}


def parse_caption(text: str) -> dict[str, str | None]:
    """Return slot -> value for every slot of `data.slots`: a value, "none" (denied) or None (not mentioned).

    Never raises for any string. Values come from the closed vocabularies if the word belongs to one; garment types,
    shoes, hair styles and carried items may have other values ("dress", "cell phone").
    """
    return dict(zip(SLOTS, _parse(text), strict=True))


@lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[str | None, ...]:
    spoken = segments(text)
    carried, nothing, worn = _carried(spoken)
    found = [mention for segment in worn for mention in mentions(segment)]
    upper_color, upper_type = _garment(found, "upper")
    if not (upper_color or upper_type):
        upper_color = _dressed_in(worn)
    lower_color, lower_type = _garment(found, "lower")
    values = {
        "gender": _gender(spoken),
        "age": _age([segment for segment in spoken if segment.kind != "carry"]),
        "upper_color": upper_color,
        "upper_type": upper_type,
        "lower_color": lower_color,
        "lower_type": lower_type,
        "shoes": _shoes(found, worn),
        "hair": _hair(found, worn),
        "glasses": _glasses(found, text),
        "carrying": ", ".join(carried) or (NONE if nothing else None),
    }
    return tuple(values[slot] if slot in values else _noun(found, slot) for slot in SLOTS)


def coverage(captions: Iterable[str]) -> dict[str, float]:
    """Return slot -> share (0 to 1) of the captions that answer it, denials included; 0 without captions."""
    rows = [_parse(caption) for caption in captions]
    return {slot: sum(row[i] is not None for row in rows) / max(len(rows), 1) for i, slot in enumerate(SLOTS)}


def _carried(spoken: Sequence[Segment]) -> tuple[list[str], bool, list[Segment]]:
    """Return the carried items, whether carrying was denied, and the segments about worn items."""
    items: set[str] = set()
    nothing = False
    worn: list[Segment] = []
    for segment in spoken:
        if segment.kind != "carry":
            worn.append(segment)
        elif segment.negated or segment.tokens[:1] in (("no",), ("nothing",)):
            nothing = True
        else:
            held, rest = carried_items(segment)
            items.update(held)
            worn.extend(rest)
    for segment in worn:
        for mention in mentions(segment):
            if mention.entry.kind == "bag" or (mention.entry.kind == "thing" and segment.kind == "wear"):
                nothing = nothing or mention.negated
                if not mention.negated:
                    items.add(mention.entry.value or mention.words)
    return sorted(items), nothing, worn


def _gender(spoken: Sequence[Segment]) -> str | None:
    """Return the gender of the first noun in a subject, otherwise of a pronoun, otherwise of any noun."""
    everything = [token for segment in spoken for token in segment.tokens]
    subjects = [token for segment in spoken if segment.kind in ("subject", "other") for token in segment.tokens]
    for tokens, genders in ((subjects, GENDER_NOUNS), (everything, GENDER_PRONOUNS), (everything, GENDER_NOUNS)):
        for token in tokens:
            if token in genders:
                return genders[token]
    return next((GENDER_NOUNS[token[:-2]] for token in everything if token[:-2] in GENDER_NOUNS), None)


def _age(spoken: Sequence[Segment]) -> str | None:
    for segment in spoken:
        for i, token in enumerate(segment.tokens):
            age = _age_at(segment.tokens, i, token)
            if age is not None:
                return age
    return None


def _age_at(tokens: tuple[str, ...], i: int, token: str) -> str | None:
    following = tokens[i + 1 : i + 4]
    if token in AGE_WORDS:
        return AGE_WORDS[token]
    if token == "middle" and following[:1] in (("aged",), ("age",)):
        return "middle-aged"
    if token in AGE_WORDS_BEFORE_PERSON and any(word in PERSON_NOUNS for word in following):
        return None if tokens[max(i - 1, 0)] in ("year", "years") else AGE_WORDS_BEFORE_PERSON[token]
    if token in ("old", "older") and i and tokens[i - 1] in ("is", "looks", "appears", "quite", "very"):
        return "elderly"
    if token in YOUNG_NOUNS:
        return "young"
    years = _years(tokens, i, token)
    return None if years is None else _age_of(years)


def _years(tokens: tuple[str, ...], i: int, token: str) -> int | None:
    """Return the years of "20 year old", "aged 20", "in his early 20s" or "in her twenties" at index `i`."""
    if token in _DECADES:
        return _DECADES[token]
    digits = token.removesuffix("s")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_OF_AGE):
        return None
    is_age = token.endswith("s") or tokens[i + 1 : i + 2] in (("year",), ("years",)) or tokens[max(i - 1, 0)] == "aged"
    return int(digits) if is_age and 0 < int(digits) <= _OLDEST else None


def _age_of(years: int) -> str:
    if years < _MIDDLE_AGED_FROM:
        return "young"
    return "middle-aged" if years < _ELDERLY_FROM else "elderly"


def _garment(found: Sequence[Mention], kind: str) -> tuple[str | None, str | None]:
    """Return (color, type) of one garment of a kind; a word with a type precedes one without ("clothes")."""
    named = [mention for mention in found if mention.entry.kind == kind and not mention.negated]
    typed = [mention for mention in named if mention.entry.value]
    first = next((mention for mention in typed if mention.color), typed[0] if typed else None)
    colors = (mention.color for mention in ([first] if first else []) + [m for m in named if not m.entry.value])
    return next((color for color in colors if color), None), first.entry.value if first else None


def _dressed_in(worn: Sequence[Segment]) -> str | None:
    """Return a color without a garment: "a woman in black", "dressed in all black"."""
    for segment in worn:
        tokens = list(segment.tokens)
        while tokens and tokens[-1] in _TRAILING:
            tokens.pop()
        alone = len(tokens) == 1 or tokens[-2:-1] in (["in"], ["all"])
        if tokens and tokens[-1] in COLOR_WORDS and alone and segment.kind != "carry" and not segment.negated:
            return COLOR_WORDS[tokens[-1]]
    return None


def _shoes(found: Sequence[Mention], worn: Sequence[Segment]) -> str | None:
    named = [mention for mention in found if mention.entry.kind == "shoes"]
    kept = [mention for mention in named if not mention.negated]
    if not kept:
        barefoot = any("barefoot" in segment.tokens for segment in worn)
        return NONE if named or barefoot else None
    first = kept[0].entry.value
    color = next((mention.color for mention in kept if mention.entry.value == first and mention.color), None)
    return f"{color} {first}" if color else first


def _hair(found: Sequence[Mention], worn: Sequence[Segment]) -> str | None:
    style = next((style for segment in worn for style in _hair_styles(segment)), None)
    if style is not None:
        return style
    hair = [mention for mention in found if mention.entry.kind == "hair" and not mention.negated]
    words = [word for mention in hair for word in mention.qualifiers]
    return next((names[word] for names in (HAIR_LENGTHS, HAIR_LOOKS) for word in words if word in names), None)


@lru_cache(maxsize=8192)
def _hair_styles(segment: Segment) -> tuple[str, ...]:
    tokens, found = segment.tokens, []
    for i, token in enumerate(tokens):
        if segment.negated or any(word in NEGATORS for word in tokens[max(i - 2, 0) : i]):
            continue
        style = HAIR_STYLES.get(" ".join(tokens[i : i + 2])) or HAIR_STYLES.get(token)
        if style is not None:
            found.append(style)
    return tuple(found)


def _noun(found: Sequence[Mention], slot: str) -> str | None:
    """Return the first noun whose kind is `slot`, or "none" if all of them are denied."""
    named = [mention for mention in found if mention.entry.kind == slot]
    kept = [mention.entry.value or mention.words for mention in named if not mention.negated]
    return next(iter(kept), NONE if named else None)


def _glasses(found: Sequence[Mention], text: str) -> str | None:
    glasses = _noun(found, "glasses")
    # "wearing glasses or not" repeats the instruction.
    return None if glasses != NONE and "glasses or not" in text.lower() else glasses
