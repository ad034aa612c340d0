"""Rank the gallery for every sentence in the joint space, and summarize the rankings for metrics.json.

Shapes: S sentences, N test images, D joint width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.columns.lists import LIST_ROWS, lists_of
from data.columns.texts import Texts
from data.files import write_tables
from data.people import UNKNOWN_CAMERA
from data.schemas import TEXT_RANKINGS
from reid.evaluation.sentences.source import Sentences, Source, places_of
from reid.inputs.evaluation_rows import EvaluationRows

if TYPE_CHECKING:
    from reid.ranking.metrics import Ranking

TEXT_RANKINGS_FILE: Final = "text_rankings.parquet"
RANKS: Final = (1, 5, 10)

Float32s = NDArray[np.float32]
Ints = NDArray[np.int64]


class TextResult(TypedDict):
    """Scores of one model, fractions. model: untrained or trained."""

    model: str
    mAP: float
    rank1: float
    rank5: float
    rank10: float


class TextToImage(TypedDict):
    """The key text_to_image of metrics.json.

    n_sentences: all sentences, those without a match included. n_images: images that they are about. n_distinct:
    different sentences. n_identities: people that the sentences with a match are about. n_sharing: those of them who
    have a sentence that another one also has. ceiling_rank1: see `ceiling_rank1`. n_truncated: sentences longer than
    the text tower reads. n_gallery: ranked images. n_skipped: sentences without a match.
    """

    source: Source
    n_sentences: int
    n_images: int
    n_distinct: int
    n_identities: int
    n_sharing: int
    ceiling_rank1: float
    n_truncated: int
    n_gallery: int
    n_skipped: int
    description: str
    results: list[TextResult]


class Described(NamedTuple):
    """Sentences with a match, [S]: the person of each."""

    texts: Texts
    pids: Ints


class SentenceRanking:
    """The rankings of the gallery for the sentences of one evaluation, model by model."""

    def __init__(self, sentences: Sentences, rows: EvaluationRows, top_k: int) -> None:
        self._sentences = sentences
        self._images = rows.images
        self._place_S = places_of(sentences, rows.images)
        self._top_k = top_k
        every = slice(0, len(rows.images))
        self._gallery = every if sentences.source == "dataset" else rows.splits[0].gallery
        self._rankings: dict[str, Ranking] = {}

    @property
    def texts(self) -> Texts:
        """The sentences, [S]."""
        return self._sentences.text

    def add(self, model: str, text_SD: Float32s, joint_ND: Float32s) -> None:
        """Rank the gallery for every sentence. joint_ND: of all test images."""
        from reid.ranking.metrics import evaluate_ranking

        pids = self._images.pid
        gallery_pids = pids[self._gallery]
        self._rankings[model] = evaluate_ranking(
            text_SD,
            joint_ND[self._gallery],
            pids[self._place_S],
            gallery_pids,
            np.full(len(self._place_S), UNKNOWN_CAMERA),
            np.full(len(gallery_pids), UNKNOWN_CAMERA),
            max_rank=RANKS[-1],
            top_k=self._top_k,
            exclude="none",
        )

    def summary(self, n_truncated: int) -> TextToImage:
        """Return the key text_to_image of metrics.json."""
        ranking = next(iter(self._rankings.values()))  # the models rank the same images for the same sentences
        matched = self._matched(ranking)
        return {
            "source": self._sentences.source,
            "n_sentences": len(self._sentences),
            "n_images": len(np.unique(self._place_S)),
            "n_distinct": len(self.texts.sorted_distinct()),
            "n_identities": len(np.unique(matched.pids)),
            "n_sharing": len(sharing_identities(matched)),
            "ceiling_rank1": ceiling_rank1(matched),
            "n_truncated": n_truncated,
            "n_gallery": ranking.n_gallery,
            "n_skipped": ranking.n_skipped,
            "description": describe(self._sentences.source),
            "results": [_result(model, found) for model, found in self._rankings.items()],
        }

    def write(self, folder: Path) -> None:
        """Write text_rankings.parquet."""
        tables = (table for model, ranking in self._rankings.items() for table in self._tables(model, ranking))
        write_tables(folder / TEXT_RANKINGS_FILE, tables, TEXT_RANKINGS)

    def _matched(self, ranking: Ranking) -> Described:
        at = ranking.query_index
        return Described(self.texts[at], self._images.pid[self._place_S[at]])

    def _tables(self, model: str, ranking: Ranking) -> Iterator[pa.Table]:
        """Yield the rows of text_rankings.parquet, some thousand sentences at a time."""
        gallery = self._images.take(self._gallery)
        for start in range(0, ranking.n_valid, LIST_ROWS):
            rows = slice(start, start + LIST_ROWS)
            at, top_index = ranking.query_index[rows], ranking.top_index[rows]
            described, filled = self._images.take(self._place_S[at]), top_index >= 0
            nearest = top_index[filled]
            columns = {
                "model": [model] * len(at),
                "sentence": self.texts[at],
                "number": self._sentences.number[at],
                "image_path": described.path,
                "pid": described.pid,
                "ap": ranking.ap[rows],
                "first_hit": ranking.first_hit[rows],
                "n_relevant": ranking.n_relevant[rows],
                "top_paths": lists_of(gallery.path[nearest], filled),
                "top_pids": lists_of(gallery.pid[nearest], filled),
                "top_scores": lists_of(ranking.top_score[rows][filled], filled),
            }
            yield pa.table(columns).cast(TEXT_RANKINGS)


def _result(model: str, ranking: Ranking) -> TextResult:
    rank1, rank5, rank10 = (float(ranking.cmc[rank - 1]) for rank in RANKS)
    return {"model": model, "mAP": ranking.mAP, "rank1": rank1, "rank5": rank5, "rank10": rank10}


def ceiling_rank1(described: Described) -> float:
    """Return the highest rank 1 that any model can reach on sentences with a match, as a fraction.

    A model ranks the gallery alike for equal sentences, so that the image in first place shows one person and is right
    only for the sentences about that person: at best, for the person with most of the equal sentences. So the ceiling
    is the sum over different sentences of that greatest number, divided by the number of sentences.
    """
    counts = _people_of_texts(described)
    return int(np.maximum.reduceat(counts.sentences, counts.starts).sum()) / len(described.texts)


def sharing_identities(described: Described) -> Ints:
    """Return the people who have a sentence that is also about another one, sorted."""
    counts = _people_of_texts(described)
    people_of_text = np.diff(np.append(counts.starts, len(counts.pids)))
    found: Ints = np.unique(counts.pids[np.repeat(people_of_text > 1, people_of_text)])
    return found


class _People(NamedTuple):
    """Who the different sentences are about: one entry per sentence and person. starts: of each sentence's entries.

    sentences: how many equal sentences are about that person.
    """

    pids: Ints
    sentences: Ints
    starts: Ints


def _people_of_texts(described: Described) -> _People:
    text = described.texts.places_in(described.texts)
    pairs, counts = np.unique(np.stack([text, described.pids], axis=1), axis=0, return_counts=True)
    return _People(pairs[:, 1], counts, np.flatnonzero(np.diff(pairs[:, 0], prepend=-1)))


def describe(source: Source) -> str:
    """Return the protocol in words."""
    what = (
        "Every sentence of every test image is ranked against all test images, its own included (the protocol of "
        "CUHK-PEDES)."
        if source == "dataset"
        else "The caption of every query is ranked against the gallery, distractors included; captions whose status is "
        "not ok are left out."
    )
    return (
        f"{what} Cosine similarity in the joint space; an image of the person is a match, whatever its camera. "
        "Sentences without a match are skipped. AP is not interpolated; ties are ranked in gallery order."
    )
