"""Cleaning of the captions of a dataset, which counts the answers of its training images before it changes any."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from captioning.prompts.cleaning import Answers, Cleaner
from captioning.prompts.pattern import PAPER_PATTERN
from data.columns.distinct import one_array
from data.people import JUNK
from data.slots import SLOTS
from data.splits import TRAIN
from data.stages.images import IndexedImages


class DatasetCleaning:
    """Cleaning of the captions of `images`: `see` them all, and then ask for the cleaned ones in order.

    Majorities take 50 bytes per image; without `caption.cleaning.drop_dissent`, nothing is kept.
    """

    def __init__(self, images: IndexedImages, config: CaptionConfig) -> None:
        self._cleaner = Cleaner(config.cleaning, config.prompt_template.pattern or PAPER_PATTERN)
        self._counts = config.cleaning.drop_dissent
        self._at = 0
        if self._counts:
            table = images.rows("split", "pid")
            pids = table["pid"].to_numpy()
            self._is_trained = pc.equal(table["split"], TRAIN).to_numpy() & (pids != JUNK)
            self._person = np.unique(pids, return_inverse=True)[1]
            self._answers = np.full((len(pids), len(SLOTS)), -1, dtype=np.int32)
            self._majorities: Answers | None = None

    def see(self, at: NDArray[np.int64], captions: pa.Table) -> None:
        """Count the answers of the images `at`, whose captions are given."""
        if self._counts:
            self._answers[at] = self._cleaner.answers(captions)

    def cleaned(self, captions: pa.Table) -> pa.Array:
        """Return the cleaned captions of the next rows of the dataset. captions: columns of captions.parquet."""
        answers = self._cleaner.answers(captions)
        confidences = np.stack([_numbers(captions[f"conf_{slot}"]) for slot in SLOTS], axis=1)
        doubtful = self._cleaner.doubtful(answers, confidences, self._majority(len(captions)))
        return self._cleaner.cleaned(one_array(captions["caption"]), answers, doubtful)

    def _majority(self, count: int) -> Answers:
        """Return the majorities of the identities of the next `count` images."""
        if not self._counts:
            return np.full((count, len(SLOTS)), -1, dtype=np.int32)
        if self._majorities is None:
            people = self._person[self._is_trained]
            found = self._cleaner.clear_majorities(people, self._answers[self._is_trained])
            # Identities without a training image, of which the last may be beyond the others, have no majority.
            more = int(self._person.max(initial=-1)) + 1 - len(found)
            self._majorities = np.concatenate([found, np.full((more, len(SLOTS)), -1, dtype=np.int32)])
        part = slice(self._at, self._at + count)
        self._at += count
        return np.where(self._is_trained[part, None], self._majorities[self._person[part]], np.int32(-1))


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return log-probabilities, NaN for null."""
    numbers: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    return numbers
