"""Tokens, segments and mentions of a caption: the grammar that all slots are parsed with.

"A man is wearing a black shirt and carrying a bag." has three segments: the subject "a man is", "a black shirt and"
after the verb *wearing*, and "a bag" after *carrying*. A mention is a noun of the lexicon in a segment, with the words
that qualify it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from captioning.attributes.lexicon import (
    ADJECTIVES,
    AUXILIARIES,
    CARRY_VERBS,
    COLOR_WORDS,
    DETERMINERS,
    HAIR_LENGTHS,
    HAIR_STYLES,
    LEXICON,
    LONGEST,
    NEGATORS,
    OTHER_VERBS,
    PREPOSITIONS,
    WEAR_VERBS,
    Entry,
)

_BRACKETED: Final = re.compile(r"\[[^\[\]]*\]")  # a repeated instruction: "[upper clothes]"
_TOKEN: Final = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[.;:!?\n]+|,")
_JOINTS: Final = frozenset(("and", "or", ","))
_FIRST_WORDS: Final = frozenset(noun.split(" ", 1)[0] for noun in LEXICON)
_QUALIFIERS: Final = frozenset(COLOR_WORDS) | ADJECTIVES | frozenset(HAIR_LENGTHS) | frozenset(HAIR_STYLES)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a sentence. kind: subject, wear, carry or other. closed: False if the text breaks off after it."""

    kind: str
    tokens: tuple[str, ...]
    negated: bool = False
    closed: bool = True


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A noun of the lexicon. words: as written. qualifiers: words before it, or after "is", in text order."""

    entry: Entry
    words: str
    qualifiers: tuple[str, ...]
    negated: bool

    @property
    def color(self) -> str | None:
        """The first color among the qualifiers."""
        return next((COLOR_WORDS[word] for word in self.qualifiers if word in COLOR_WORDS), None)


def segments(text: str) -> list[Segment]:
    """Split a caption (any string) into segments, in text order."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("\u2018", "'")
    found: list[Segment] = []
    sentence: list[str] = []
    for token in _TOKEN.findall(_BRACKETED.sub(" ", plain)):
        if token[0] in ".;:!?\n":
            found.extend(_sentence(sentence, closed=True))
            sentence = []
        else:
            sentence.append(token)
    return [*found, *_sentence(sentence, closed=False)]


def _sentence(tokens: list[str], *, closed: bool) -> Iterator[Segment]:
    kind, negated, start = "subject", False, 0
    for i, token in enumerate(tokens):
        begins = _segment_kind(token)
        if begins is None or lookup(tuple(tokens[i : i + LONGEST]), 0):  # "running" is not a verb in "running shoes"
            continue
        yield Segment(kind=kind, tokens=tuple(tokens[start:i]), negated=negated)
        kind, negated, start = begins, token == "without" or _denied(tokens, start, i), i + 1
    if tokens:
        yield Segment(kind=kind, tokens=tuple(tokens[start:]), negated=negated, closed=closed)


def _segment_kind(token: str) -> str | None:
    if token in CARRY_VERBS:
        return "carry"
    if token in WEAR_VERBS:
        return "wear"
    return "other" if token in OTHER_VERBS else None


def _denied(tokens: list[str], start: int, verb: int) -> bool:
    """Return True if the auxiliaries right before the verb contain a "not": "is not wearing"."""
    for i in range(verb - 1, start - 1, -1):
        if tokens[i] in NEGATORS:
            return True
        if tokens[i] not in AUXILIARIES:
            return False
    return False


def lookup(tokens: tuple[str, ...], at: int) -> tuple[Entry, int] | None:
    """Return the longest lexicon noun that starts at index `at` and the index after it."""
    if at < len(tokens) and tokens[at] not in _FIRST_WORDS:
        return None
    for length in range(min(LONGEST, len(tokens) - at), 0, -1):
        entry = LEXICON.get(" ".join(tokens[at : at + length]))
        if entry is not None:
            return entry, at + length
    return None


@lru_cache(maxsize=8192)
def mentions(segment: Segment) -> tuple[Mention, ...]:
    """Return the lexicon nouns of a segment, in text order."""
    tokens = segment.tokens
    found: list[Mention] = []
    at = floor = 0
    while at < len(tokens):
        match = lookup(tokens, at)
        if match is None:
            at += 1
            continue
        entry, end = match
        before, denied = _before(tokens, floor, at)
        # "no glasses or hat": the denial applies to both.
        denied = denied or (bool(found) and found[-1].negated and tokens[floor] == "or")
        found.append(
            Mention(
                entry=entry,
                words=" ".join(tokens[at:end]),
                qualifiers=before if any(word in COLOR_WORDS for word in before) else before + _after(tokens, end),
                negated=segment.negated or denied,
            )
        )
        at = floor = end
    return tuple(found)


def _before(tokens: tuple[str, ...], floor: int, noun: int) -> tuple[tuple[str, ...], bool]:
    """Return the qualifiers before a noun, and whether a "no" precedes them."""
    i = noun - 1
    while i >= floor:
        token = tokens[i]
        if token in NEGATORS:
            return tokens[i + 1 : noun], True
        if token in DETERMINERS:
            return tokens[i + 1 : noun], i > floor and tokens[i - 1] in NEGATORS
        joins = (
            (token in _JOINTS or tokens[i - 1 : i + 1] == ("pair", "of")) and i > floor and tokens[i - 1] in _QUALIFIERS
        )
        if (token in PREPOSITIONS or token in _JOINTS) and not joins:
            break
        i -= 1
    return tokens[i + 1 : noun], False


def _after(tokens: tuple[str, ...], end: int) -> tuple[str, ...]:
    """Return the qualifiers of "is black and white" after a noun."""
    if end >= len(tokens) or tokens[end] not in ("is", "are", "in"):
        return ()
    stop = end + 1
    while stop < len(tokens) and (tokens[stop] in _QUALIFIERS or tokens[stop] in _JOINTS):
        stop += 1
    return tokens[end + 1 : stop]
