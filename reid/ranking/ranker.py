"""Rank galleries for all queries in bounded memory, in whole rows of scores or in tiles of them, with equal results.

Tiles need the scores of a query's relevant images (its bounds) before they are found, because images above them are
counted tile by tile. So the bounds are computed first, from these images alone. When a block of queries is done, they
are compared with the scores found in the tiles. If a bit differs, the block is counted again with the scores found.

Shapes: Q queries, G gallery rows, D features, k nearest images; b queries of a block or tile, c gallery rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import DataError
from data.people import UNKNOWN_CAMERA
from reid.ranking.kernel import count_rows, finish_rows, run_on_slices, top_rows
from reid.ranking.similarity import (
    BLOCK_BYTES,
    RESIDENT_BYTES,
    TILE,
    FeatureRows,
    Scores,
    TileShape,
    check_dimensions,
    padded_to,
    similarity_blocks,
    similarity_tiles,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST_LABEL: Final = np.iinfo(np.int64).max
_LARGEST_INT32: Final = np.iinfo(np.int32).max
_WHOLE_ROWS: Final = 256
"""Queries that a block of whole rows must have room for; the gallery is ranked in tiles otherwise."""
_PASSES: Final = 4
"""Times that a block of queries meets the gallery, at most. Two are enough where a product can be repeated."""
_MEMBER_BYTES: Final = 16
"""Memory per member of a query: its bound, the score found, and its count."""


class Labels(NamedTuple):
    """Identities and cameras of queries [Q] and gallery [G]; camera -1 is unknown."""

    query_pids: Ints
    gallery_pids: Ints
    query_camids: Ints
    gallery_camids: Ints


@dataclass(frozen=True, kw_only=True)
class Table:
    """Results of all queries, valid or not, [Q]; the nearest images are [Q, k]. Positions are those of the ranker."""

    ap: Floats
    inp: Floats
    first_hit: Ints
    n_relevant: Ints
    top_index: Ints
    top_score: Scores


class Ranker:
    """Ranks a gallery for blocks of queries; the results are in `table`.

    labels: of the queries and of the ranked gallery images. top_k: nearest images to keep, 0 for none. same_camera:
    exclude images of the query's identity from its camera. part: positions of the ranked images in the gallery whose
    scores are given, ascending; None for all.
    """

    def __init__(self, labels: Labels, *, top_k: int, same_camera: bool, part: Ints | None = None) -> None:
        count, size = len(labels.query_pids), len(labels.gallery_pids)
        self.part = part
        self.query_camids = labels.query_camids
        self.same_camera = same_camera
        position = np.int32 if size <= _LARGEST_INT32 else np.int64
        self.by_pid = np.argsort(labels.gallery_pids, kind="stable").astype(position)
        sorted_pids = labels.gallery_pids[self.by_pid]
        self.begin = np.searchsorted(sorted_pids, labels.query_pids, side="left")
        self.end = np.searchsorted(sorted_pids, labels.query_pids, side="right")
        # An unknown camera equals no camera of a query, not even an unknown one.
        self.cams = np.where(labels.gallery_camids == UNKNOWN_CAMERA, -LARGEST_LABEL, labels.gallery_camids)
        self.table = Table(
            ap=np.zeros(count),
            inp=np.zeros(count),
            first_hit=np.zeros(count, np.int64),
            n_relevant=np.zeros(count, np.int64),
            top_index=np.full((count, top_k), -1, np.int64),
            top_score=np.full((count, top_k), np.nan, np.float32),
        )

    def add(self, start: int, scores: Scores) -> None:
        """Fill in the results of the queries from `start` on. May change `scores` [b, at least G]."""
        block = Block(self, slice(start, start + len(scores)))
        block.add(0, 0, scores)
        block.finish()


class Block:
    """Counts of a block of queries while the tiles of the gallery arrive in order.

    bounds: scores of the members of all queries, one query after the other, NaN where excluded; None if the first tile
    is the whole gallery.
    """

    def __init__(self, ranker: Ranker, rows: slice, bounds: Scores | None = None) -> None:
        self._ranker = ranker
        self._rows = rows
        self._starts = np.concatenate([[0], np.cumsum(ranker.end[rows] - ranker.begin[rows])])
        self._bounds = bounds
        self._reset()

    def _reset(self) -> None:
        self._found = np.full(self._starts[-1], np.nan, np.float32)
        self._before = np.zeros(self._starts[-1], np.int64)
        self._filled = np.zeros(len(self._starts) - 1, np.int64)

    def add(self, query: int, gallery: int, scores: Scores) -> None:
        """Count a tile; `query` is the row in the block and `gallery` the position of its first score.

        May change `scores` [b, c].
        """
        if self._ranker.part is not None:
            first, last = np.searchsorted(self._ranker.part, (gallery, gallery + scores.shape[1]))
            if first == last:
                return
            scores, gallery = np.ascontiguousarray(scores[:, self._ranker.part[first:last] - gallery]), int(first)
        ranker, table = self._ranker, self._ranker.table
        bounds = self._found if self._bounds is None else self._bounds

        def work(part: slice) -> None:
            local = slice(query + part.start, query + part.stop)
            rows = slice(self._rows.start + local.start, self._rows.start + local.stop)
            members = (ranker.by_pid, ranker.begin[rows], ranker.end[rows])
            cameras = (ranker.cams, ranker.query_camids[rows], ranker.same_camera)
            counts = (self._starts[local], bounds, self._found, self._before)
            count_rows(scores[part], gallery, *members, *cameras, *counts)
            if table.top_index.shape[1]:
                top_rows(scores[part], gallery, self._filled[local], table.top_index[rows], table.top_score[rows])

        run_on_slices(len(scores), work)

    def finish(self) -> bool:
        """Write the results and return True, or prepare for all tiles once more if the bounds were not exact."""
        if self._bounds is not None and not np.array_equal(self._bounds, self._found, equal_nan=True):
            self._bounds = self._found
            self._reset()
            return False
        table, rows = self._ranker.table, self._rows
        results = (table.ap[rows], table.inp[rows], table.first_hit[rows], table.n_relevant[rows])
        finish_rows(self._starts, self._found, self._before, *results)
        return True


def rank_features(
    rankers: Sequence[Ranker], queries: FeatureRows, gallery: FeatureRows, block_bytes: int = BLOCK_BYTES
) -> None:
    """Fill in the tables of the rankers, which share the queries and the gallery.

    Whole rows of scores are ranked where the gallery is small enough to be kept in memory. Otherwise a block of
    queries and a tile of scores take about `block_bytes` together, and the gallery is read once per block.

    Raises:
        DataError: different numbers of dimensions, NaN or infinite features, or products that cannot be repeated.
    """
    if _fits_whole_rows(queries, gallery, block_bytes):
        for start, scores in similarity_blocks(queries, gallery, block_bytes):
            for ranker in rankers:
                ranker.add(start, scores)
        return
    check_dimensions(queries, gallery)
    shape = TileShape.within(block_bytes // 4, gallery)
    for rows in _blocks_of_queries(rankers, queries, block_bytes):
        query_BD = queries.block(rows.start, rows.stop)
        blocks = [Block(ranker, rows, bounds_of(ranker, rows, query_BD, gallery)) for ranker in rankers]
        for _ in range(_PASSES):
            for tile in similarity_tiles(query_BD, rows.stop - rows.start, gallery, shape):
                for block in blocks:
                    block.add(*tile)
            blocks = [block for block in blocks if not block.finish()]
            if not blocks:
                break
        else:
            raise DataError(
                "ranking: the same product of features gives other numbers each time it is computed on this machine, "
                "so nothing can be counted exactly: set OMP_NUM_THREADS=1, or update PyTorch"
            )


def _fits_whole_rows(queries: FeatureRows, gallery: FeatureRows, block_bytes: int) -> bool:
    row_bytes = 4 * padded_to(len(gallery))
    room = block_bytes // row_bytes
    return row_bytes * gallery.dim <= RESIDENT_BYTES and room >= min(_WHOLE_ROWS, padded_to(len(queries)))


def _blocks_of_queries(rankers: Sequence[Ranker], queries: FeatureRows, block_bytes: int) -> Iterator[slice]:
    """Yield consecutive queries, whole tiles of them: their features take half of `block_bytes`, members a quarter."""
    each = np.sum([ranker.end - ranker.begin for ranker in rankers], axis=0)
    members = np.concatenate([[0], np.cumsum(each)])
    height = max(1, block_bytes // 2 // (4 * queries.dim * TILE)) * TILE
    start = 0
    while start < len(queries):
        fit = int(np.searchsorted(members, members[start] + block_bytes // 4 // _MEMBER_BYTES, side="right")) - 1
        most = fit if fit == len(queries) else start + max(TILE, (fit - start) // TILE * TILE)
        stop = min(start + height, most, len(queries))
        yield slice(start, stop)
        start = stop


def bounds_of(ranker: Ranker, rows: slice, query_BD: Tensor, gallery: FeatureRows) -> Scores:
    """Return the scores of the members of the queries `rows`, one query after the other; NaN where excluded.

    query_BD: these queries, padded. The products are those of whole tiles (64 queries with the images of their
    identities), so that they have the bits of any other product of the same rows.
    """
    begin, end = ranker.begin[rows], ranker.end[rows]
    starts = np.concatenate([[0], np.cumsum(end - begin)])
    bounds = np.full(starts[-1], np.nan, np.float32)
    for first in range(0, len(begin), TILE):
        last = min(first + TILE, len(begin))
        wanted = _Members.of(ranker, begin[first:last], end[first:last])
        for at, piece in wanted.pieces(gallery.chunk_rows):
            scores = torch.mm(query_BD[first : first + TILE], gallery.gather(piece).T).numpy()
            for row, column, count in zip(range(first, last), wanted.column, wanted.length, strict=True):
                low, high = max(column, at), min(column + count, at + len(piece))
                if low < high:
                    entry = starts[row] - column
                    bounds[entry + low : entry + high] = scores[row - first, low - at : high - at]
    if ranker.same_camera:
        for row, camera in enumerate(ranker.query_camids[rows]):
            own = ranker.cams[ranker.by_pid[begin[row] : end[row]]] == camera
            bounds[starts[row] : starts[row + 1]][own] = np.nan
    return bounds


class _Members(NamedTuple):
    """The members of a few queries, each image once: their places in the gallery, and those of each query in them."""

    place: NDArray[np.signedinteger]
    column: Ints
    length: Ints

    @classmethod
    def of(cls, ranker: Ranker, begin: Ints, end: Ints) -> _Members:
        first, which = np.unique(begin, return_inverse=True)
        count = np.zeros(len(first), np.int64)
        # Queries without members may begin where an identity does.
        np.maximum.at(count, which, end - begin)
        found = np.concatenate([ranker.by_pid[a : a + n] for a, n in zip(first, count, strict=True)])
        place = found if ranker.part is None else ranker.part[found]
        return cls(place, (np.cumsum(count) - count)[which], end - begin)

    def pieces(self, rows: int) -> Iterator[tuple[int, NDArray[np.signedinteger]]]:
        """Yield the places, up to `rows` at a time, each time with the number of those before."""
        for at in range(0, len(self.place), rows):
            yield at, self.place[at : at + rows]
