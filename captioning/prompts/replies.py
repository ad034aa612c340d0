"""Replies of a captioning model: their form, and the re-prompt where a reply is malformed.

The first reply is greedy. Each further one is drawn at a temperature, with a seed that depends only on the image and
the number of the attempt, so that an image gets the same replies in any batch and on any worker.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, TypeVar

from pydantic import Field

from captioning.attributes.lexicon import CARRY_VERBS, PERSON_NOUNS, WEAR_VERBS
from captioning.prompts.templates import builtin_templates
from data.artifacts.fingerprint import digest_bytes
from data.config import Config

TEMPLATES_WITH_FORM: Final = frozenset(template.id for template in builtin_templates() if template.pattern)
"""Ids of the templates whose replies must open with a person; a free description may open in any way."""

_WORD: Final = re.compile(r"[a-z0-9'-]+")
_SENTENCE_END: Final = re.compile(r"[.!?;\n]+")
# Up to eight words, three times in a row, without a full stop in between.
_STUTTER: Final = re.compile(r"\b(\S+(?: \S+){0,7}?)(?: \1\b){2,}")
_OPENING_WORDS: Final = 6
_SEED_DIGITS: Final = 7  # hex: 28 bits, which every server accepts

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The text that the model wrote for one image.

    text: unchanged. n_tokens: generated tokens without the end token; None if unknown. truncated: no end token within
    the limit. confidence: slot -> log-probability, if the decoding provides it. batch_size: images in the same batch.
    first_text: the first reply, if a later one was kept. n_replies: how many replies were generated.
    """

    text: str
    n_tokens: int | None
    truncated: bool
    confidence: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    first_text: str | None = None
    n_replies: int = 1


class ReplyForm(Config):
    """The limits beyond which a reply is malformed."""

    loop_repeats: int = Field(default=3, ge=2)
    """A reply that repeats one clause at least this often is looping."""
    min_words: int = Field(default=5, ge=0)
    """Replies with fewer words are off-template."""
    max_words: int = Field(default=70, ge=1)
    """Replies with more words are off-template; CLIP reads 77 tokens."""


class RegenerateConfig(ReplyForm):
    """When to re-prompt the model, and how often. Disabled by default."""

    times: int = Field(default=0, ge=0, le=10)
    """Maximum number of further replies. The first well-formed one is kept, or the first reply if none is. HAM uses
    3."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Sampling temperature of the further replies: the lower, the closer to the first reply."""


def prompt_until_well_formed(
    images: Mapping[str, T],
    prompt: Callable[[Sequence[T], Sequence[int] | None], list[Reply]],
    config: RegenerateConfig,
    template_id: str,
) -> dict[str, Reply]:
    """Return image sha256 -> the reply to keep.

    images: image sha256 -> the image as `prompt` takes it. prompt: called with images, and from the second reply on
    with one seed per image; returns one reply per image.
    """
    kept = dict(zip(images, prompt(list(images.values()), None), strict=True))
    for attempt in range(1, config.times + 1):
        bad = [image for image, reply in kept.items() if is_malformed(reply, config, template_id)]
        if not bad:
            break
        replies = prompt([images[image] for image in bad], [seed_of(image, attempt) for image in bad])
        for image, reply in zip(bad, replies, strict=True):
            first = replace(kept[image], n_replies=attempt + 1)
            better = replace(reply, first_text=first.text, n_replies=attempt + 1)
            kept[image] = first if is_malformed(reply, config, template_id) else better
    return kept


def seed_of(image_sha256: str, attempt: int) -> int:
    """Return the sampling seed of re-prompt number `attempt`, counted from 1."""
    return int(digest_bytes(f"{image_sha256}:{attempt}".encode())[:_SEED_DIGITS], 16)


def is_malformed(reply: Reply, form: ReplyForm, template_id: str) -> bool:
    """Return True if the reply is truncated, looping or off-template."""
    text = reply.text.strip()
    return reply.truncated or is_looping(text, form.loop_repeats) or is_off_template(text, template_id, form)


def is_off_template(text: str, template_id: str, form: ReplyForm) -> bool:
    """Return True if the reply does not follow its template, or is too short or too long."""
    fits = form.min_words <= len(text.split()) <= form.max_words
    return not fits or (template_id in TEMPLATES_WITH_FORM and not has_template_form(text))


@lru_cache(maxsize=65536)
def is_looping(text: str, repeats: int) -> bool:
    """Return True if the reply repeats one clause at least `repeats` times, or stutters without a full stop."""
    plain = text.lower()
    clauses = Counter(clause for clause in _clauses(plain) if len(clause) > 1)
    return max(clauses.values(), default=0) >= repeats or _STUTTER.search(" ".join(plain.split())) is not None


def _clauses(text: str) -> Iterator[tuple[str, ...]]:
    """Yield each verb with the words up to the next verb or the end of the sentence."""
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
    """Return True if the reply opens with a person ("A young woman") and every further sentence has a verb.

    Brackets, slashes, colons, bullets and line breaks mean that the model repeats the instruction or writes a list.
    """
    if re.search(r"[\[\]/:*#\n]", text.strip()):
        return False
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE_END.split(text.lower())]
    spoken = [words for words in sentences if words]
    if not spoken or spoken[0][0] not in ("a", "an") or PERSON_NOUNS.isdisjoint(spoken[0][:_OPENING_WORDS]):
        return False
    return all(any(word in WEAR_VERBS or word in CARRY_VERBS for word in words) for words in spoken[1:])
