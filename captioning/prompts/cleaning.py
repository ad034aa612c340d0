"""Optional cleaning of captions: doubtful answers are dropped, and the raw text is kept next to the result.

An answer is never replaced by that of other captions: the majority of an identity is a reason to drop an answer, not a
better answer. Since the majority requires the identity, it applies to training images only.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from captioning.prompts.pattern import Pattern, compose
from data.columns.codes import Codes, votes
from data.columns.distinct import one_array
from data.config import Config
from data.slots import SLOTS

Answers = NDArray[np.int32]
"""Codes of the answers of captions (`data.columns.codes`), one column per slot, -1 where there is none, [N, slots]."""


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


class Cleaner:
    """Cleans captions. pattern: the words in which a caption without its doubtful answers is written."""

    def __init__(self, config: CleaningConfig, pattern: Pattern) -> None:
        self._config = config
        self._pattern = pattern
        self._codes = [Codes() for _ in SLOTS]

    def answers(self, captions: pa.Table) -> Answers:
        """Return the answers of captions, from their columns attr_<slot>."""
        columns = [one_array(captions[f"attr_{slot}"]) for slot in SLOTS]
        return np.stack([codes.encode(column) for codes, column in zip(self._codes, columns, strict=True)], axis=1)

    def clear_majorities(self, people: NDArray[np.int64], answers: Answers) -> Answers:
        """Return the answers on which the captions of an identity clearly agree, one row per identity.

        people: identity of each training caption, numbered from 0, [N].
        """
        found = np.full((people.max(initial=-1) + 1, len(SLOTS)), -1, dtype=np.int32)
        for slot, codes in enumerate(self._codes):
            given = votes(people, answers[:, slot])
            first = given.leaders(codes.ranks())  # a tie is never clear: the share must exceed one half
            total, count = given.totals[first], given.counts[first]
            clear = first[(total >= self._config.min_images) & (count >= self._config.majority * total)]
            found[given.groups[clear], slot] = given.codes[clear]
        return found

    def doubtful(self, answers: Answers, confidences: NDArray[np.float64], majority: Answers) -> NDArray[np.bool_]:
        """Return the mask of the answers to leave out, [N, slots].

        confidences: log-probabilities, NaN where unknown. majority: from `clear_majorities` for the identity of each
        caption; -1 where there is none, and for images outside the training split.
        """
        config = self._config
        unsure = confidences < math.log(config.drop_below) if config.drop_below > 0 else False
        dissents = config.drop_dissent & (majority >= 0) & (answers != majority)
        doubtful: NDArray[np.bool_] = (answers >= 0) & (unsure | dissents)
        return doubtful

    def cleaned(self, captions: pa.Array, answers: Answers, doubtful: NDArray[np.bool_]) -> pa.Array:
        """Return the captions without their doubtful answers; a caption without any stays unless `recompose` is on."""
        rewritten = captions.is_valid().to_numpy(zero_copy_only=False)
        if not self._config.recompose:
            rewritten &= doubtful.any(axis=1)
        kept = np.ascontiguousarray(np.where(doubtful, -1, answers)[rewritten], dtype=np.int32)
        # Each distinct row of answers is written once.
        rows = kept.view(np.dtype((np.void, kept.dtype.itemsize * len(SLOTS)))).reshape(-1)
        _, first, which = np.unique(rows, return_index=True, return_inverse=True)
        texts = pa.array([self._text(answers_S) for answers_S in kept[first].tolist()], pa.string())
        return pc.replace_with_mask(captions, pa.array(rewritten), texts.take(pa.array(which)))

    def _text(self, answers: list[int]) -> str:
        given = zip(SLOTS, self._codes, answers, strict=True)
        return compose({slot: None if code < 0 else codes.values[code] for slot, codes, code in given}, self._pattern)
