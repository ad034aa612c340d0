"""The scores of each sentence, read from text_rankings.parquet, for intervals and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import DataError
from reid.evaluation.bootstrap import Unit, mean_intervals, method
from reid.evaluation.intervals import Interval

TEXT_METHOD: Final = method("identities").replace("queries", "sentences")
"""Description of the intervals, shown wherever one is shown."""
_COLUMNS: Final = ("model", "image_path", "number", "sentence", "pid", "ap", "first_hit", "n_relevant")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SentenceKey(NamedTuple):
    """What identifies a sentence of an evaluation. number: among the sentences of the image, from 0."""

    image_path: str
    number: int
    sentence: str


@dataclass(frozen=True, kw_only=True)
class SentenceScores:
    """Scores of the sentences with a match, [S], by one model, in the order of the file."""

    keys: tuple[SentenceKey, ...]
    pid: Ints
    ap: Floats
    first_hit: Ints
    n_relevant: Ints

    def take(self, places: Sequence[int]) -> SentenceScores:
        """Return the sentences at `places`, in that order."""
        at = np.asarray(places, dtype=np.int64)
        return SentenceScores(
            keys=tuple(self.keys[place] for place in places),
            pid=self.pid[at],
            ap=self.ap[at],
            first_hit=self.first_hit[at],
            n_relevant=self.n_relevant[at],
        )

    def values(self) -> dict[str, Floats]:
        """Return metric -> score of each sentence, fractions."""
        return {"mAP": self.ap, **{f"rank{rank}": (self.first_hit <= rank).astype(float) for rank in (1, 5, 10)}}


def read_sentence_scores(file: Path) -> dict[str, SentenceScores]:
    """Return model -> its scores. Raises DataError when the file cannot be read."""
    try:
        frame = pq.read_table(file, columns=list(_COLUMNS)).to_pandas()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} cannot be read ({error}); evaluate again") from error
    return {
        str(model): SentenceScores(
            keys=tuple(map(SentenceKey, part["image_path"], part["number"].tolist(), part["sentence"])),
            pid=part["pid"].to_numpy(np.int64),
            ap=part["ap"].to_numpy(np.float64),
            first_hit=part["first_hit"].to_numpy(np.int64),
            n_relevant=part["n_relevant"].to_numpy(np.int64),
        )
        for model, part in frame.groupby("model", sort=False)
    }


def sentence_intervals(
    ours: SentenceScores, base: SentenceScores | None = None, unit: Unit = "identities"
) -> dict[str, Interval] | None:
    """Return metric -> interval of the mean score in percent, or of its difference to `base` in points.

    base: of the same sentences. None for too few people (`reid.evaluation.bootstrap.MIN_UNITS`).
    """
    values = ours.values()
    if base is not None:
        theirs = base.values()
        values = {key: value - theirs[key] for key, value in values.items()}
    units = ours.pid if unit == "identities" else np.arange(len(ours.pid))
    found = mean_intervals(np.stack(list(values.values()), axis=1), units)
    if found is None:
        return None
    return {key: (100 * low, 100 * high) for key, (low, high) in zip(values, found, strict=True)}
