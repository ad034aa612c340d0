"""The scores of each sentence, read from text_rankings.parquet, for intervals and comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.columns.texts import Texts
from data.errors import DataError
from reid.evaluation.bootstrap import Unit, mean_intervals, method
from reid.evaluation.intervals import Interval

TEXT_METHOD: Final = method("identities").replace("queries", "sentences")
"""Description of the intervals, shown wherever one is shown."""
_COLUMNS: Final = ("model", "image_path", "number", "sentence", "pid", "ap", "first_hit", "n_relevant")
_BETWEEN: Final = pa.scalar("\0", pa.large_string())

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SentenceScores:
    """Scores of the sentences with a match, [S], by one model, in the order of the file.

    keys: what identifies each sentence of an evaluation: its text, its image and its number among those of the image.
    """

    keys: Texts
    pid: Ints
    ap: Floats
    first_hit: Ints
    n_relevant: Ints

    def take(self, at: Ints) -> SentenceScores:
        """Return the sentences at some places, in that order."""
        return SentenceScores(
            keys=self.keys[at],
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
        table = pq.read_table(file, columns=list(_COLUMNS))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{file} cannot be read ({error}); evaluate again") from error
    models = pc.unique(table["model"]).to_pylist()
    return {model: _scores_of(table.filter(pc.equal(table["model"], model))) for model in models}


def _scores_of(rows: pa.Table) -> SentenceScores:
    key = (rows["image_path"], rows["number"].cast(pa.string()), rows["sentence"])
    return SentenceScores(
        keys=Texts(pc.binary_join_element_wise(*(column.cast(pa.large_string()) for column in key), _BETWEEN)),
        pid=rows["pid"].to_numpy(),
        ap=rows["ap"].to_numpy(),
        first_hit=rows["first_hit"].to_numpy(),
        n_relevant=rows["n_relevant"].to_numpy(),
    )


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
