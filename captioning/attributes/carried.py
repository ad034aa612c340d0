"""Carried items, from segments such as "carrying a black bag and a water bottle"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from captioning.attributes.lexicon import (
    ADJECTIVES,
    COLOR_WORDS,
    DEGRADING,
    DETERMINERS,
    ECHOES,
    NEGATORS,
    PREPOSITIONS,
    Entry,
)
from captioning.attributes.text import Segment, lookup, mentions

_MOST_WORDS = 3  # in the name of an item that is not in the lexicon
_NEVER_CARRIED = frozenset(("hair", "glasses"))
_RATHER_WORN = frozenset(("shoes", "lower"))


def carried_items(segment: Segment) -> tuple[list[str], list[Segment]]:
    """Split a carry segment into the carried items and the parts about something worn.

    An item may have any name ("a toy"), unless the reply was cut off right after it: "a back" may be half a word.
    """
    items: list[str] = []
    worn: list[Segment] = []
    parts = list(_parts(segment.tokens))
    for i, tokens in enumerate(parts):
        part = Segment(kind="wear", tokens=tokens)
        last = mentions(part)[-1:]
        if last and (last[0].entry.kind in _NEVER_CARRIED or (i and last[0].color and _worn(last[0].entry.kind))):
            worn.append(part)
            continue
        item = _item(tokens, complete=segment.closed or i < len(parts) - 1)
        if item:
            items.append(item)
    return items, worn


def _worn(kind: str) -> bool:
    return kind in _RATHER_WORN


def _parts(tokens: Iterable[str]) -> Iterator[tuple[str, ...]]:
    part: list[str] = []
    for token in tokens:
        if token in ("and", ",", "or"):
            yield tuple(part)
            part = []
        else:
            part.append(token)
    yield tuple(part)


def _item(tokens: tuple[str, ...], *, complete: bool) -> str | None:
    head = _until_preposition(tokens)
    words = tuple(word for word in head if _names(word))
    # First as written ("plastic bag"), then without qualifiers ("red and white plastic box").
    known = _known(head) or _known(words)
    if known is not None:
        entry, name = known
        return None if entry.kind in _NEVER_CARRIED else entry.value or name
    return " ".join(words) if complete and 0 < len(words) <= _MOST_WORDS else None


def _known(words: tuple[str, ...]) -> tuple[Entry, str] | None:
    """Return the lexicon noun at the end of the words: "handbag", but not "guitar" of "guitar case"."""
    for at in range(len(words)):
        match = lookup(words, at)
        if match is not None and match[1] == len(words):
            return match[0], " ".join(words[at:])
    return None


def _until_preposition(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words before the first preposition; "a pair of" and "a piece of" are skipped."""
    kept: list[str] = []
    for token in tokens:
        if token == "of" and not any(_names(word) for word in kept):
            kept = []
        elif token in PREPOSITIONS:
            break
        else:
            kept.append(token)
    return tuple(kept)


def _names(word: str) -> bool:
    """Return True if a word can be part of an item's name."""
    return word.isalpha() and not any(
        word in words for words in (DETERMINERS, ADJECTIVES, COLOR_WORDS, DEGRADING, ECHOES, NEGATORS)
    )
