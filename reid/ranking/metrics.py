"""Exact ReID metrics (mAP, CMC, mINP), computed in blocks, without sorting rows or storing the distance matrix.

Protocol (Market-1501 and its successors): similarity of L2-normalized features. Gallery images of identity -1 are junk
and are dropped. For each query, gallery images of the same identity *and* the same camera are excluded; camera -1 is
unknown and never the same as another. A query without a relevant image left is skipped and counted. AP is not
interpolated; mINP is the mean of (number of relevant images) / (rank of the last one), as in Ye et al., TPAMI 2021.
Equal scores rank in gallery order.

The rank of a relevant image is one plus the number of counted gallery images that are nearer (or equal and earlier),
so counting is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.errors import DataError, raise_problems
from data.people import is_junk
from data.process.environment import exact_float32
from reid.config.evaluate import Exclude, RerankConfig
from reid.ranking.ranker import LARGEST_LABEL, Labels, Ranker, Table, rank_features
from reid.ranking.rerank import rerank_blocks
from reid.ranking.similarity import BLOCK_BYTES, FeatureRows, Features, Scores, similarity_blocks

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_AT_ONCE: Final = 1 << 14
_MOST_EXACT: Final = 2.0**53
"""Up to this number, every whole number is a float."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Metrics as fractions, and the values per query behind them. V valid queries, k images kept per query."""

    mAP: float
    """Mean average precision over valid queries."""
    mINP: float
    """Mean inverse negative penalty."""
    cmc: Floats
    """[max_rank]: share of valid queries with a relevant image among the first 1, 2, ..."""
    query_index: Ints
    """[V]: position of each valid query."""
    ap: Floats
    """[V]: average precision."""
    inp: Floats
    """[V]: number of relevant images / rank of the last."""
    first_hit: Ints
    """[V]: 1-based rank of the first relevant image."""
    n_relevant: Ints
    """[V]: relevant images in the gallery."""
    top_index: Ints
    """[V, k]: positions of the nearest counted gallery images, nearest first; -1 if there are fewer."""
    top_score: Scores
    """[V, k]: their cosine similarity, or one minus the re-ranked distance; NaN if there are fewer."""
    n_skipped: int
    """Queries without a relevant image."""
    n_gallery: int
    """Gallery images, junk not counted."""
    n_junk: int
    """Gallery images dropped as junk."""

    @property
    def n_valid(self) -> int:
        """V, the number of queries that count."""
        return len(self.query_index)


@dataclass(frozen=True, kw_only=True)
class CameraRanking:
    """Scores of the queries in the part of the gallery that one camera took. V queries with a match there."""

    camera: int
    query_index: Ints
    """[V]: position of each query with a match."""
    ap: Floats
    """[V]: average precision."""
    inp: Floats
    """[V]: number of relevant images / rank of the last."""
    first_hit: Ints
    """[V]: 1-based rank of the first relevant image."""
    n_gallery: int
    """Gallery images of the camera, junk not counted."""


@exact_float32(torch)
def evaluate_ranking(  # noqa: PLR0917 - the usual order in the field
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    *,
    max_rank: int = 50,
    top_k: int = 50,
    exclude: Exclude = "same_camera",
    rerank: RerankConfig | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Ranking:
    """Rank the gallery for every query and return the metrics.

    Args:
        query_features: [Q, D]; array, memory map or tensor, of any scale. A row of zeros has similarity 0 to all
            others.
        gallery_features: the same, [G, D].
        query_pids: identities, [Q].
        gallery_pids: identities, [G]; -1 is junk.
        query_camids: cameras, [Q]; -1 is unknown.
        gallery_camids: cameras, [G]; -1 is unknown, and such an image is never excluded.
        max_rank: length of the CMC curve.
        top_k: nearest images to keep per query.
        exclude: "same_camera" (the protocol), or "none" for datasets without cameras.
        rerank: k-reciprocal re-ranking over all queries and the gallery without junk; None turns it off.
        block_bytes: memory for one block of similarities; changes no result.

    Raises:
        DataError: shapes that do not fit together, NaN or infinite features, labels that are not whole numbers, an
            unknown `exclude`, a `max_rank` or `top_k` below 1, no query with a relevant image, or features of zeros
            with re-ranking.
    """
    _check_options(exclude, max_rank=max_rank, top_k=top_k)
    labels = _labels_of(query_pids, gallery_pids, query_camids, gallery_camids)
    _check_shapes(query_features, gallery_features, labels)
    keep = np.flatnonzero(~is_junk(labels.gallery_pids))
    ranker = Ranker(_in_part(labels, keep), top_k=top_k, same_camera=exclude == "same_camera")
    _rank([ranker], query_features, gallery_features, keep, rerank, block_bytes)
    return _summarize(ranker.table, keep, n_junk=len(labels.gallery_pids) - len(keep), max_rank=max_rank)


def evaluate_scores(
    scores_QG: Scores,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    *,
    max_rank: int = 50,
    top_k: int = 50,
    exclude: Exclude = "same_camera",
) -> Ranking:
    """Rank the gallery by the given scores, highest first, and return the metrics.

    scores_QG: finite float32, [Q, G]. The other arguments, ties and errors are those of `evaluate_ranking`.
    """
    _check_options(exclude, max_rank=max_rank, top_k=top_k)
    labels = _labels_of(query_pids, gallery_pids, query_camids, gallery_camids)
    _check_shapes(scores_QG, scores_QG.T, labels)
    if not np.isfinite(scores_QG).all():
        raise DataError("ranking: the scores contain NaN or infinity, so the gallery cannot be ranked")
    keep = np.flatnonzero(~is_junk(labels.gallery_pids))
    ranker = Ranker(_in_part(labels, keep), top_k=top_k, same_camera=exclude == "same_camera")
    ranker.add(0, np.ascontiguousarray(scores_QG[:, keep], np.float32))
    return _summarize(ranker.table, keep, n_junk=len(labels.gallery_pids) - len(keep), max_rank=max_rank)


@exact_float32(torch)
def similarities(query_features: Features, gallery_features: Features) -> Scores:
    """Return the whole matrix of scores that `evaluate_ranking` ranks by, float32 [Q, G]; for small datasets."""
    queries, gallery = FeatureRows(query_features, "query"), FeatureRows(gallery_features, "gallery")
    blocks = [block[:, : len(gallery)].copy() for _, block in similarity_blocks(queries, gallery)]
    return np.concatenate(blocks)


@exact_float32(torch)
def evaluate_by_camera(  # noqa: PLR0917 - as `evaluate_ranking`
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    *,
    exclude: Exclude = "same_camera",
    rerank: RerankConfig | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> list[CameraRanking]:
    """Rank the gallery images of each camera on their own, for every query; return one result per gallery camera.

    Arguments and errors are those of `evaluate_ranking`, but a camera without a match of any query is no error. With
    `rerank`, the scores are those of the whole gallery, so that each ranking is a part of the one that
    `evaluate_ranking` computes.
    """
    _check_options(exclude)
    labels = _labels_of(query_pids, gallery_pids, query_camids, gallery_camids)
    _check_shapes(query_features, gallery_features, labels)
    keep = np.flatnonzero(~is_junk(labels.gallery_pids))
    kept, same_camera = _in_part(labels, keep), exclude == "same_camera"
    cameras = np.unique(kept.gallery_camids).tolist()
    parts = [np.flatnonzero(kept.gallery_camids == camera) for camera in cameras]
    rankers = [Ranker(_in_part(kept, part), top_k=0, same_camera=same_camera, part=part) for part in parts]
    _rank(rankers, query_features, gallery_features, keep, rerank, block_bytes)
    return [
        _of_camera(camera, ranker.table, len(part))
        for camera, part, ranker in zip(cameras, parts, rankers, strict=True)
    ]


def _in_part(labels: Labels, part: Ints) -> Labels:
    """Return the labels of all queries and of the gallery images at `part`, ascending positions."""
    if len(part) == len(labels.gallery_pids):
        return labels
    return labels._replace(gallery_pids=labels.gallery_pids[part], gallery_camids=labels.gallery_camids[part])


def _of_camera(camera: int, table: Table, n_gallery: int) -> CameraRanking:
    valid = np.flatnonzero(table.n_relevant)
    return CameraRanking(
        camera=camera,
        query_index=valid,
        ap=table.ap[valid],
        inp=table.inp[valid],
        first_hit=table.first_hit[valid],
        n_gallery=n_gallery,
    )


def _labels_of(*given: ArrayLike) -> Labels:
    return Labels(*(_whole(values, name) for values, name in zip(given, Labels._fields, strict=True)))


def _rank(  # noqa: PLR0917 - the features as `evaluate_ranking` takes them
    rankers: Sequence[Ranker],
    query_features: Features,
    gallery_features: Features,
    keep: Ints,
    rerank: RerankConfig | None,
    block_bytes: int,
) -> None:
    """Fill in the tables of the rankers. keep: positions of the gallery images without junk."""
    queries = FeatureRows(query_features, "query")
    gallery = FeatureRows(gallery_features, "gallery", keep if len(keep) < len(gallery_features) else None)
    if rerank is None:
        rank_features(rankers, queries, gallery, block_bytes)
        return
    for start, scores in _as_scores(rerank_blocks(queries, gallery, rerank, block_bytes)):
        for ranker in rankers:
            ranker.add(start, scores)


def _as_scores(blocks: Iterable[tuple[int, Scores]]) -> Iterator[tuple[int, Scores]]:
    for start, distances in blocks:
        yield start, np.subtract(1, distances, out=distances)


def _summarize(table: Table, keep: Ints, *, n_junk: int, max_rank: int) -> Ranking:
    valid = np.flatnonzero(table.n_relevant)
    if not len(valid):
        raise DataError(
            f"none of the {len(table.n_relevant)} queries has an image of its identity from another camera in the "
            f"gallery of {len(keep)} images: check the split and the cameras, or evaluate with exclude='none'"
        )
    first_hit = table.first_hit[valid]
    hits = np.bincount(np.minimum(first_hit, max_rank + 1), minlength=max_rank + 2)[1 : max_rank + 1]
    rows = valid if len(valid) < len(table.n_relevant) else slice(None)  # a slice copies nothing
    top_index = table.top_index[rows]
    for start in range(0, len(top_index), _AT_ONCE):
        block = top_index[start : start + _AT_ONCE]
        block[:] = np.where(block < 0, -1, keep[block])
    return Ranking(
        mAP=float(table.ap[valid].mean()),
        mINP=float(table.inp[valid].mean()),
        cmc=np.cumsum(hits) / len(valid),
        query_index=valid,
        ap=table.ap[valid],
        inp=table.inp[valid],
        first_hit=first_hit,
        n_relevant=table.n_relevant[valid],
        top_index=top_index,
        top_score=table.top_score[rows],
        n_skipped=len(table.n_relevant) - len(valid),
        n_gallery=len(keep),
        n_junk=n_junk,
    )


def _check_options(exclude: str, **counts: int) -> None:
    problems = [
        f"{name} must be a whole number from 1 up, not {count!r}"
        for name, count in counts.items()
        if not _is_count(count)
    ]
    if exclude not in get_args(Exclude):
        problems.append(f"exclude must be {' or '.join(map(repr, get_args(Exclude)))}, not {exclude!r}")
    raise_problems("ranking", problems, DataError)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _whole(values: ArrayLike, name: str) -> Ints:
    """Return labels as 64-bit integers; raises DataError if that would change one."""
    given = np.asarray(values)
    if given.dtype == object:  # pandas columns with missing values
        given = np.asarray(given.tolist())
    if given.dtype.kind in "iu" and (given <= LARGEST_LABEL).all():
        return given.astype(np.int64)
    if given.dtype.kind == "f" and (np.abs(given) <= _MOST_EXACT).all() and (given == np.rint(given)).all():
        return given.astype(np.int64)
    raise DataError(
        f"ranking: {name} must be whole numbers from {-LARGEST_LABEL} to {LARGEST_LABEL}, and are {given.dtype}: "
        "number the identities and the cameras"
    )


def _check_shapes(queries: Features, gallery: Features, labels: Labels) -> None:
    problems = [
        f"{name} has shape {values.shape}, but there are {len(features)} {side} features"
        for name, values, features, side in (
            ("query_pids", labels.query_pids, queries, "query"),
            ("query_camids", labels.query_camids, queries, "query"),
            ("gallery_pids", labels.gallery_pids, gallery, "gallery"),
            ("gallery_camids", labels.gallery_camids, gallery, "gallery"),
        )
        if values.shape != (len(features),)
    ]
    problems += [f"the {side} is empty" for side, rows in (("query", queries), ("gallery", gallery)) if not len(rows)]
    raise_problems("ranking", problems, DataError)
