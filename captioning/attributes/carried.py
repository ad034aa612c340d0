"""What a person carries, out of segments such as "carrying a black bag and a water bottle"."""

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

_MOST_WORDS = 3  # in the name of a thing the lexicon does not know
_NEVER_CARRIED = frozenset(("hair", "glasses"))
_RATHER_WORN = frozenset(("shoes", "lower"))


def carried_things(segment: Segment) -> tuple[list[str], list[Segment]]:
    """Split a carry segment into the things carried and the parts that tell of something worn after all.

    An object of any name counts ("a toy"), unless the reply was cut off right after it: "a back" is not a thing then.
    """
    things: list[str] = []
    worn: list[Segment] = []
    parts = list(_parts(segment.tokens))
    for i, tokens in enumerate(parts):
        part = Segment(kind="wear", tokens=tokens)
        last = mentions(part)[-1:]
        if last and (last[0].entry.kind in _NEVER_CARRIED or (i and last[0].color and _worn(last[0].entry.kind))):
            worn.append(part)
            continue
        thing = _thing(tokens, complete=segment.closed or i < len(parts) - 1)
        if thing:
            things.append(thing)
    return things, worn


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


def _thing(tokens: tuple[str, ...], *, complete: bool) -> str | None:
    head = _until_preposition(tokens)
    words = tuple(word for word in head if _names(word))
    # First as written ("plastic bag"), then without the words that only qualify ("red and white plastic box").
    known = _known(head) or _known(words)
    if known is not None:
        entry, name = known
        return None if entry.kind in _NEVER_CARRIED else entry.value or name
    return " ".join(words) if complete and 0 < len(words) <= _MOST_WORDS else None


def _known(words: tuple[str, ...]) -> tuple[Entry, str] | None:
    """Return the lexicon noun that ends the words: "handbag", but not "guitar" of "guitar case"."""
    for at in range(len(words)):
        match = lookup(words, at)
        if match is not None and match[1] == len(words):
            return match[0], " ".join(words[at:])
    return None


def _until_preposition(tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words up to "in", "of" and the like; "a pair of" and "a piece of" are skipped."""
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
    """Say whether a word can be part of a thing's name."""
    return word.isalpha() and not any(
        word in words for words in (DETERMINERS, ADJECTIVES, COLOR_WORDS, DEGRADING, ECHOES, NEGATORS)
    )
