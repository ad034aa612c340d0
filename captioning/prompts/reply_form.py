"""Whether a reply has the form that was asked for: sentences that each tell something, nothing said over and over, and
neither too few words nor too many. The audit flags what has not; regeneration asks the model again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from pydantic import Field

from captioning.attributes.lexicon import CARRY_VERBS, PERSON_NOUNS, WEAR_VERBS
from captioning.prompts.templates import builtin_templates
from data.config import Config

TEMPLATES_WITH_FORM: Final = frozenset(template.id for template in builtin_templates() if template.pattern)
"""Ids of the templates whose answers open with a person; a free description may open as it likes."""

_WORD: Final = re.compile(r"[a-z0-9'-]+")
_SENTENCE_END: Final = re.compile(r"[.!?;\n]+")
# A stretch of up to eight words three times in a row, without any full stop between.
_STUTTER: Final = re.compile(r"\b(\S+(?: \S+){0,7}?)(?: \1\b){2,}")
_OPENING_WORDS: Final = 6


class ReplyForm(Config):
    """When a reply is malformed."""

    loop_repeats: int = Field(default=3, ge=2)
    """A clause said at least this often in one reply makes it looping."""
    min_words: int = Field(default=5, ge=0)
    """Replies with fewer words are off-template."""
    max_words: int = Field(default=70, ge=1)
    """Replies with more words are off-template; CLIP reads 77 tokens."""


def is_off_template(text: str, template_id: str, form: ReplyForm) -> bool:
    """Say whether a reply has not its template's form, or is too short or too long."""
    fits = form.min_words <= len(text.split()) <= form.max_words
    return not fits or (template_id in TEMPLATES_WITH_FORM and not has_template_form(text))


@lru_cache(maxsize=65536)
def is_looping(text: str, repeats: int) -> bool:
    """Say whether a reply says one clause at least `repeats` times, or stutters without a full stop."""
    plain = text.lower()
    clauses = Counter(clause for clause in _clauses(plain) if len(clause) > 1)
    return max(clauses.values(), default=0) >= repeats or _STUTTER.search(" ".join(plain.split())) is not None


def _clauses(text: str) -> Iterator[tuple[str, ...]]:
    """Yield what follows each verb up to the next one or the sentence's end, verb included."""
    for sentence in _SENTENCE_END.split(text):
        clause: list[str] = []
        for word in _WORD.findall(sentence):
            if word in WEAR_VERBS or word in CARRY_VERBS:
                yield tuple(_without_tail(clause))
                clause = [word]
            elif clause:
                clause.append(word)
        yield tuple(_without_tail(clause))


def _without_tail(clause: list[str]) -> list[str]:
    # "a shirt and is" before "carrying" is the clause "a shirt".
    end = len(clause)
    while end and clause[end - 1] in ("and", "is", "not"):
        end -= 1
    return clause[:end]


@lru_cache(maxsize=65536)
def has_template_form(text: str) -> bool:
    """Say whether a reply opens with a person ("A young woman") and goes on in sentences that each tell something.

    Brackets, slashes, colons, bullets and line breaks are the instruction repeated, or a list.
    """
    if re.search(r"[\[\]/:*#\n]", text.strip()):
        return False
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE_END.split(text.lower())]
    told = [words for words in sentences if words]
    if not told or told[0][0] not in ("a", "an") or PERSON_NOUNS.isdisjoint(told[0][:_OPENING_WORDS]):
        return False
    return all(any(word in WEAR_VERBS or word in CARRY_VERBS for word in words) for words in told[1:])
