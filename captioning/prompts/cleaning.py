"""Optional cleaning of captions: doubtful answers are dropped, and the raw text is kept next to the result.

An answer is never replaced by that of other captions: the majority of an identity is a reason to drop an answer, not a
better answer. Since the majority requires the identity, it applies to training images only.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import Field

from captioning.prompts.pattern import PAPER_PATTERN, Pattern, Slots, compose
from data.config import Config
from data.slots import SLOTS


class CleaningConfig(Config):
    """What to leave out of captions. By default every caption stays as the model wrote it."""

    drop_below: float = Field(default=0.0, ge=0, lt=1)
    """Leave out answers decoded with a probability (0 to 1) below this; 0 keeps all. Requires slot filling."""
    drop_dissent: bool = False
    """Leave out answers that contradict a clear majority of the identity's captions (training images only)."""
    min_images: int = Field(default=3, ge=2)
    """Captions of an identity that must answer a slot before their majority counts."""
    majority: float = Field(default=0.6, gt=0.5, le=1)
    """Share (0.5 to 1) of those captions that must agree."""
    recompose: bool = False
    """Rewrite every caption from its attributes, even if nothing is left out. This removes negations, repeated clauses
    and demeaning words, but also everything that is not an attribute (a hat, a pattern)."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned caption. dropped: the slots that were left out, in the order of `data.slots`."""

    text: str
    slots: dict[str, str | None]
    dropped: tuple[str, ...]


def clear_majorities(rows: Iterable[tuple[int, Slots]], config: CleaningConfig) -> dict[int, dict[str, str]]:
    """Return identity -> slot -> value of the slots on which the captions of an identity clearly agree.

    rows: (identity, slots) of the training captions. Empty if `drop_dissent` is off.
    """
    if not config.drop_dissent:
        return {}
    tallies: defaultdict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for pid, slots in rows:
        for slot in SLOTS:
            value = slots.get(slot)
            if value is not None:
                tallies[pid, slot][value] += 1
    clear: dict[int, dict[str, str]] = {}
    for (pid, slot), tally in tallies.items():
        value, votes = tally.most_common(1)[0]  # a tie is never clear: the share must exceed one half
        if tally.total() >= config.min_images and votes >= config.majority * tally.total():
            clear.setdefault(pid, {})[slot] = value
    return clear


def clean_caption(
    raw_text: str,
    slots: Slots,
    *,
    confidence: Mapping[str, float | None],
    majority: Mapping[str, str],
    config: CleaningConfig,
    pattern: Pattern = PAPER_PATTERN,
) -> Cleaned:
    """Return the caption without its doubtful answers; `raw_text` itself if there are none and `recompose` is off.

    confidence: slot -> log-probability, None or absent if unknown. majority: slot -> value, from `clear_majorities` for
    the identity; empty for images outside the training split.
    """
    answers = {slot: slots.get(slot) for slot in SLOTS}
    dropped = tuple(
        slot
        for slot, value in answers.items()
        if value is not None
        and (_is_unsure(confidence.get(slot), config) or _is_dissent(value, majority.get(slot), config))
    )
    kept = {slot: None if slot in dropped else value for slot, value in answers.items()}
    text = compose(kept, pattern) if dropped or config.recompose else raw_text
    return Cleaned(text=text, slots=kept, dropped=dropped)


def _is_unsure(logprob: float | None, config: CleaningConfig) -> bool:
    return logprob is not None and config.drop_below > 0 and logprob < math.log(config.drop_below)


def _is_dissent(value: str, majority: str | None, config: CleaningConfig) -> bool:
    return config.drop_dissent and majority is not None and value != majority
