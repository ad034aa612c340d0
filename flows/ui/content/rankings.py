"""The queries of a run with their rank lists, read from rankings.parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.columns.texts import TextPlaces, Texts
from data.errors import DataError
from flows.ui.content.library import Run
from flows.ui.content.recent import Recent

_MOST: Final = 2
_TOPS: Final = ("top_paths", "top_pids", "top_camids", "top_scores")


class Ranked(NamedTuple):
    """One gallery image of a rank list. right: it shows the person of the query."""

    rank: int
    path: str
    pid: int
    camid: int
    score: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query. number: its row in rankings.parquet. ap: average precision, a fraction. first_hit: rank, from 1."""

    number: int
    model: str
    mode: str
    path: str
    pid: int
    camid: int
    ap: float
    first_hit: int
    n_relevant: int
    hits: tuple[Ranked, ...]


class QueryNumbers:
    """The numbers of the queries of one model and mode, by their paths."""

    def __init__(self, numbers: NDArray[np.int64], paths: Texts) -> None:
        self._numbers = numbers
        self._places = TextPlaces(paths)

    def __getitem__(self, path: str) -> int:
        """Return the number of a query. Raises KeyError for an unknown path."""
        return int(self._numbers[self._places.of(path)])


class Rankings:
    """The queries of one evaluation."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def worst_first(self, model: str, mode: str) -> NDArray[np.int64]:
        """Return the numbers of the queries of a model and mode, by ascending average precision."""
        numbers = self._of_row(model, mode)
        order = np.argsort(self._table["ap"].to_numpy()[numbers], kind="stable")
        return numbers[order]

    def numbers_of(self, model: str, mode: str) -> QueryNumbers:
        """Return the numbers of the queries of a model and mode."""
        numbers = self._of_row(model, mode)
        return QueryNumbers(numbers, Texts(self._table["query_path"].take(pa.array(numbers))))

    def _of_row(self, model: str, mode: str) -> NDArray[np.int64]:
        mask = pc.and_(pc.equal(self._table["model"], model), pc.equal(self._table["mode"], mode))
        return np.flatnonzero(mask.to_numpy())

    def __len__(self) -> int:
        """Return the number of queries, of all models and modes."""
        return self._table.num_rows

    def query(self, number: int, most: int = 50) -> Query:
        """Return one query with at most `most` images of its rank list."""
        row = self._table.slice(number, 1).to_pylist()[0]
        listed = list(zip(*(row[name][:most] for name in _TOPS), strict=True))
        return Query(
            number=number,
            **{name: row[name] for name in ("model", "mode", "ap", "first_hit", "n_relevant")},
            **{name: row[f"query_{name}"] for name in ("path", "pid", "camid")},
            hits=tuple(
                Ranked(rank, path, pid, camid, score, pid == row["query_pid"])
                for rank, (path, pid, camid, score) in enumerate(listed, start=1)
            ),
        )


class AllRankings:
    """The rankings that were read last."""

    def __init__(self) -> None:
        self._kept = Recent[Rankings](_MOST)

    def get(self, run: Run) -> Rankings:
        """Return the rankings of a run. Raises DataError if the file is damaged."""
        file = run.entry.folder / "rankings.parquet"
        return self._kept.get((run.key, run.entry.content), lambda: Rankings(_read(file)))


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); run its stage again") from error
