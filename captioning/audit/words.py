"""Words of replies that the audit looks at."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from captioning.attributes.lexicon import DEGRADING, LEXICON

_WORD: Final = re.compile(r"[a-z0-9'-]+")


@lru_cache(maxsize=65536)
def degrading_words(text: str) -> tuple[str, ...]:
    """Return the demeaning words of a reply, each once, in order."""
    return tuple(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word in DEGRADING))


def normalized(text: str) -> str:
    """Return a reply in lower case with single spaces, as it is compared with others."""
    return " ".join(text.lower().split())


def carried_things(carrying: str) -> tuple[str, ...]:
    """Return the items of the slot carrying; all kinds of bags are one item, because one bag gets many names."""
    names = (thing for thing in carrying.split(", ") if thing != "none")
    return tuple(sorted({_family(thing) for thing in names}))


def _family(thing: str) -> str:
    entry = LEXICON.get(thing)
    if thing.endswith("bottle"):
        return "bottle"
    return "bag" if entry is not None and entry.kind == "bag" and thing != "cell phone" else thing
