"""Optional cleaning: leave out of a caption what is doubtful. Pure functions; the raw text always stays beside it.

Nothing is ever replaced by what other captions say: an identity's majority is a reason to drop an answer, not a
better answer. And as it needs the identity, it is for training images only.
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
    """What is left out of captions. The default leaves every caption as the model wrote it."""

    drop_below: float = Field(default=0.0, ge=0, lt=1)
    """Answers decoded with a probability (0 to 1) below this are left out; 0 keeps all. Needs slot filling."""
    drop_dissent: bool = False
    """Leave out answers that contradict the clear majority of the identity's captions (training images only)."""
    min_images: int = Field(default=3, ge=2)
    """Captions of an identity that must answer a slot before its majority counts."""
    majority: float = Field(default=0.6, gt=0.5, le=1)
    """Share (0.5 to 1) of those captions that must agree."""
    recompose: bool = False
    """Write every caption anew from its attributes, also where nothing is left out. That removes negations, repeated
    clauses and judging words, and with them all that is no attribute (a hat, a pattern)."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A cleaned caption. dropped: the slots that were left out, in slot order."""

    text: str
    slots: dict[str, str | None]
    dropped: tuple[str, ...]


def clear_majorities(rows: Iterable[tuple[int, Slots]], config: CleaningConfig) -> dict[int, dict[str, str]]:
    """Return identity -> slot -> value for the slots in which an identity's captions clearly agree.

    rows: (identity, slots) of the training captions. Empty when `drop_dissent` is off.
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
        value, votes = tally.most_common(1)[0]  # no tie can be clear: the share is above one half
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
    """Return the caption without its doubtful answers; `raw_text` itself when there are none and `recompose` is off.

    confidence: slot -> log-probability, None or absent where it is not known. majority: slot -> value, of
    `clear_majorities` for the identity; empty for images that are not for training.
    """
    told = {slot: slots.get(slot) for slot in SLOTS}
    dropped = tuple(
        slot
        for slot, value in told.items()
        if value is not None and (_unsure(confidence.get(slot), config) or _dissents(value, majority.get(slot), config))
    )
    kept = {slot: None if slot in dropped else value for slot, value in told.items()}
    text = compose(kept, pattern) if dropped or config.recompose else raw_text
    return Cleaned(text=text, slots=kept, dropped=dropped)


def _unsure(logprob: float | None, config: CleaningConfig) -> bool:
    return logprob is not None and config.drop_below > 0 and logprob < math.log(config.drop_below)


def _dissents(value: str, majority: str | None, config: CleaningConfig) -> bool:
    return config.drop_dissent and majority is not None and value != majority
