"""The most that captions could give: scores with the true attributes of every test image known at test time.

Only synthetic datasets have true attributes (`flows.study.controls.TRUTH`). The pages of a study show the oracle beside
the scores of trained models.

Shapes: N test images, Q queries and G gallery images among them, S slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.people import is_person
from data.slots import SLOTS
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.study.controls import read_truth
from reid.config.evaluate import JOINT
from reid.evaluation.features import FeatureStage
from reid.inputs.evaluation_rows import EvaluationRows, RankingSplit, evaluation_rows
from reid.inputs.image_rows import ImageRows
from reid.ranking.metrics import Ranking, evaluate_scores, similarities

Mask = NDArray[np.bool_]
Features = NDArray[np.float32]
_RANKS: Final = (1, 5, 10)


class Attributes(NamedTuple):
    """The true attributes of the test images of an evaluation, in their order."""

    codes: NDArray[np.int64]
    """Number of the value of each slot."""
    seen: Mask
    """Whether the value can be seen in the image."""

    def take(self, index: slice | NDArray[np.int64]) -> Attributes:
        """Return the attributes of the images at `index`, in that order."""
        return Attributes(self.codes[index], self.seen[index])


class Errors(NamedTuple):
    """Queries whose first gallery image shows somebody else. alike: those of them who share the query's attributes."""

    queries: int
    wrong: int
    alike: int


class Oracle(NamedTuple):
    """What captions could do for one model in one mode. scores: `oracle_scores`. errors: of the model alone."""

    model: str
    mode: str
    scores: Mapping[str, float]
    visible: Mapping[str, float]
    """Scores with the attributes that can be seen in both images of a pair."""
    errors: Errors


class Room(NamedTuple):
    """How well attributes tell the people in the test images apart; distractors do not count."""

    images: int
    people: int
    descriptions: int
    """Different sets of attributes."""
    sharing: int
    """People with an image whose attributes are also those of an image of somebody else."""


def oracles(stage: FeatureStage, run: RunContext, scratch: Path) -> Iterator[Oracle]:
    """Yield the oracle of every model and mode of an evaluation. Raises DataError without true attributes.

    The features come from the artifact of `stage`, or the test images are encoded if it does not exist.
    """
    rows = evaluation_rows(run.images, stage.config)
    attributes = true_attributes(run.images, rows)
    for encoded in stage.encoded(run, scratch):
        if encoded.mode != JOINT:
            features = encoded.features_ND
            yield Oracle(
                encoded.model,
                encoded.mode,
                scores=oracle_scores(features, rows, attributes),
                visible=oracle_scores(features, rows, attributes, visible=True),
                errors=errors_of(features, rows, attributes),
            )


def true_attributes(images: IndexedImages, rows: EvaluationRows) -> Attributes:
    """Return the true attributes of the test images. Raises DataError if those of an image are unknown."""
    truth = read_truth(images.root, rows.images.path.tolist())
    values = [[row[slot] for row in truth] for slot in SLOTS]
    return Attributes(
        codes=np.stack([np.unique(column, return_inverse=True)[1] for column in values], axis=1),
        seen=np.array([[row[f"visible_{slot}"] for slot in SLOTS] for row in truth], bool),
    )


def oracle_scores(
    features: Features, rows: EvaluationRows, attributes: Attributes, *, visible: bool = False
) -> dict[str, float]:
    """Return the scores of a ranking that begins with the gallery images that share the query's attributes.

    The order within these, and within all others, is that of the evaluation: cosine similarity without re-ranking,
    ties in gallery order, images of the query's own camera excluded by the rule of `rows`.

    visible: compare a pair of images by the attributes that can be seen in both; False: by all attributes.
    """
    rankings = [_oracle_ranking(features, rows.images, split, attributes, visible=visible) for split in rows.splits]
    scores = {"mAP": [ranking.mAP for ranking in rankings], "mINP": [ranking.mINP for ranking in rankings]}
    scores |= {f"rank{rank}": [ranking.cmc[rank - 1] for ranking in rankings] for rank in _RANKS}
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _oracle_ranking(
    features: Features, images: ImageRows, split: RankingSplit, attributes: Attributes, *, visible: bool
) -> Ranking:
    query, gallery = attributes.take(split.query), attributes.take(split.gallery)
    shared = _same_where_visible(query, gallery) if visible else _same(query, gallery)
    scores = similarities(features[split.query], features[split.gallery])
    return _rank(_ordered(shared, scores), images, split)


def _rank(scores: NDArray[np.float32], images: ImageRows, split: RankingSplit) -> Ranking:
    query, gallery = images.take(split.query), images.take(split.gallery)
    labels = (query.pid, gallery.pid, query.camid, gallery.camid)
    return evaluate_scores(scores, *labels, max_rank=_RANKS[-1], top_k=1, exclude=split.exclude)


def _same(query: Attributes, gallery: Attributes) -> Mask:
    """Return the mask [Q, G] of pairs that share all attributes."""
    same: Mask = (query.codes[:, None] == gallery.codes).all(axis=2)
    return same


def _same_where_visible(query: Attributes, gallery: Attributes) -> Mask:
    """Return the mask [Q, G] of pairs that share all attributes that can be seen in both images."""
    hidden = ~(query.seen[:, None] & gallery.seen)
    same: Mask = ((query.codes[:, None] == gallery.codes) | hidden).all(axis=2)
    return same


def _ordered(first: Mask, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores that rank the images in `first` before all others, and otherwise as `scores`.

    They are places counted from the end, which float32 keeps apart up to 2**24 images; a constant added to the
    similarities would merge neighbors. Equal scores keep the gallery order.
    """
    order = np.lexsort((-scores, ~first), axis=1)
    placed = np.empty_like(scores)
    places = np.arange(order.shape[1], 0, -1, dtype=np.float32)
    np.put_along_axis(placed, order, np.broadcast_to(places, order.shape), axis=1)
    return placed


def errors_of(features: Features, rows: EvaluationRows, attributes: Attributes) -> Errors:
    """Return how many queries of the first split are answered with somebody else, and with a lookalike among them."""
    split = rows.splits[0]
    ranking = _rank(similarities(features[split.query], features[split.gallery]), rows.images, split)
    query, first = attributes.take(split.query), attributes.take(split.gallery)
    wrong = ranking.first_hit > 1
    asked, answered = ranking.query_index[wrong], ranking.top_index[wrong, 0]
    alike = (query.codes[asked] == first.codes[answered]).all(axis=1)
    return Errors(queries=ranking.n_valid, wrong=int(wrong.sum()), alike=int(alike.sum()))


def room_of(rows: EvaluationRows, attributes: Attributes) -> Room:
    """Return how well the attributes tell the people in the test images apart."""
    person = np.flatnonzero(is_person(rows.images.split, rows.images.pid))
    pids = rows.images.pid[person]
    codes, place = np.unique(attributes.codes[person], axis=0, return_inverse=True)
    pairs = np.unique(np.stack([place.reshape(-1), pids], axis=1), axis=0)  # each description of each person
    owners = np.bincount(pairs[:, 0], minlength=len(codes))
    return Room(
        images=len(person),
        people=len(np.unique(pids)),
        descriptions=len(codes),
        sharing=len(np.unique(pairs[owners[pairs[:, 0]] > 1, 1])),
    )


def text_oracle(rows: EvaluationRows, attributes: Attributes) -> dict[str, float]:
    """Return mAP and rank1 of text to image by true captions and a matcher without errors.

    The caption of a query names the attributes that can be seen in it. It matches the gallery images whose true
    attributes agree, hidden ones included, and these rank first. No caption orders the images within the two parts, so
    the scores are the expected ones of a random order. An image of the person is relevant, whatever its camera.
    """
    split = rows.splits[0]
    query, gallery = attributes.take(split.query), attributes.take(split.gallery)
    pids = rows.images.pid
    found = []
    for codes, named, pid in zip(query.codes, query.seen, pids[split.query], strict=True):
        matched = ((codes == gallery.codes) | ~named).all(axis=1)
        found.append(_expected_scores(matched, pids[split.gallery] == pid))
    scores = np.array([each for each in found if each is not None])
    return {"mAP": float(scores[:, 0].mean()), "rank1": float(scores[:, 1].mean())}


def _expected_scores(matched: Mask, relevant: Mask) -> tuple[float, float] | None:
    """Return the expected AP and rank 1 if the `matched` images rank first; None without a relevant image.

    matched, relevant: [G]. Within each part, every order is equally likely.
    """
    if not relevant.any():
        return None
    total, before, hits, first = 0.0, 0, 0, 0.0
    for part in (matched, ~matched):
        size, right = int(part.sum()), int((part & relevant).sum())
        if right:
            # Given a relevant image in a place, the others are spread evenly over the other places of the part.
            ahead = np.arange(size)
            expected_hits = hits + 1 + ahead * (right - 1) / max(1, size - 1)
            total += right / size * float((expected_hits / (before + ahead + 1)).sum())
        if size and not before:
            first = right / size
        before, hits = before + size, hits + right
    return total / int(relevant.sum()), first
