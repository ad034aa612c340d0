"""Sentences about one image, as a dataset's file stores them."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

from data.readers.base import Unusable
from data.readers.table.labels import is_missing

_UNSTORABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Sentences(NamedTuple):
    """The sentences about one image, in the order of the file. n_empty: how many others are empty."""

    texts: tuple[str, ...]
    n_empty: int


def sentences_of(value: object) -> Sentences:
    """Return the sentences in `value`, a list of text, with each run of blanks as one space.

    Raises Unusable if `value` is something else, or if a sentence has control characters or half of a character.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise Unusable("bad_sentences", f"expected a list of text, not {_shown(value)}")
    texts = [" ".join(text.split()) for text in value]
    for text in texts:
        if _UNSTORABLE.search(text):
            raise Unusable("bad_sentences", f"control characters or half of a character in {_shown(text)}")
    kept = tuple(text for text in texts if text)
    return Sentences(kept, len(texts) - len(kept))


def sentences_in(cell: object) -> Sentences:
    """Return the sentences in a cell: a list, the same as JSON text, or the text of one sentence."""
    if is_missing(cell):
        return Sentences((), 0)
    if not isinstance(cell, str):
        return sentences_of(cell)
    try:
        listed = json.loads(cell) if cell.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        listed = None
    return sentences_of(listed if isinstance(listed, list) else [cell])


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
