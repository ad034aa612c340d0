"""The ``evaluate`` stage: rank the gallery for every query, before and after training, in every inference mode.

Writes metrics.json and rankings.parquet and, if there are sentences, text_rankings.parquet. Importing this module loads
neither torch nor numba; a cached evaluation neither loads a model nor reads an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef, Produced
from data.columns.lists import LIST_ROWS, lists_of
from data.device import resolve_device
from data.files import write_json, write_tables
from data.schemas import RANKINGS
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.evaluate import JOINT, EvaluateConfig
from reid.evaluation.features import Encoded, FeatureStage
from reid.evaluation.inputs import EvaluatedModel, config_of, model_identity, other_dataset, tested_images
from reid.evaluation.protocol import protocol
from reid.evaluation.sentences.measure import SentenceRanking
from reid.evaluation.sentences.source import NoSentences, Sentences, find_sentences
from reid.evaluation.sentences.texts import count_truncated, sentence_features
from reid.inputs.evaluation_rows import EvaluationRows, RankingSplit, evaluation_rows
from reid.inputs.image_rows import ImageRows

if TYPE_CHECKING:
    from reid.ranking.metrics import Ranking

STAGE_VERSION: Final = 2
_MAX_RANK: Final = 50


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Rank the gallery for every query with a model: a train artifact, or the untrained backbone of a config.

    The untrained backbone is evaluated in mode ``image``, the trained model in each of its modes. untrained: also
    evaluate a trained model as it was before training, for which the weights that it started from must be available.
    captions: of these images, None if they are not captioned; used as sentences unless the dataset has its own.

    `make` raises DataError when queries or gallery are empty, when none of the queries has a match under
    `config.exclude`, or when a feature is not finite. It raises WeightsError when the model, or the weights from which
    its training started, are unavailable.
    """

    name: ClassVar[str] = "evaluate"
    model: EvaluatedModel
    config: EvaluateConfig
    untrained: bool = True
    captions: ArtifactRef | None = None

    @property
    def features(self) -> FeatureStage:
        """The stage that encodes the test images for this evaluation."""
        return FeatureStage(model=self.model, config=self.config, untrained=self.untrained)

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the rows of queries and gallery (with their paths), the model and the config.

        What pipelines do not set is left out, so that their fingerprints do not change.
        """
        elsewhere, sentences = other_dataset(self.model, run.images), self.sentences(run)
        return {
            **tested_images(run.images),
            "model": model_identity(self.model, run.store),
            "config": self.config.ranking_identity(),
            **({"drawn": "one image per person, all distractors"} if self.config.gallery_draws else {}),
            **({} if self.untrained else {"untrained": False}),
            **({"trained_on": elsewhere} if elsewhere else {}),
            **({"sentences": sentences.identity} if isinstance(sentences, Sentences) else {}),
            "version": STAGE_VERSION,
        }

    def sentences(self, run: RunContext) -> Sentences | NoSentences:
        """Return the sentences to search the gallery with, or why there are none."""
        return find_sentences(run.images, self.captions, self.config)

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write the files."""
        rows, found = evaluation_rows(run.images, self.config), self.sentences(run)
        sentences = SentenceRanking(found, rows, self.config.top_k) if isinstance(found, Sentences) else None
        results: list[dict[str, Any]] = []

        def ranked() -> Iterator[pa.Table]:
            for encoded in self.features.encoded(run, scratch):
                if encoded.mode != JOINT:
                    entry = _Entry(encoded.model, encoded.mode, _rank(encoded.features_ND, rows, self.config))
                    results.append(_result(entry, drawn=rows.drawn))
                    yield from _ranking_tables(entry, rows.images, rows.splits[0])
                elif sentences is not None:
                    sentences.add(encoded.model, self._text_features(run, sentences, encoded), encoded.features_ND)

        write_tables(folder / "rankings.parquet", ranked(), RANKINGS)
        rules = protocol(run.images, rows, self.config, self.model, skipped=results[0]["n_skipped_queries"])
        metrics: dict[str, Any] = {"protocol": rules, "results": results}
        if sentences is not None:
            metrics["text_to_image"] = sentences.summary(count_truncated(sentences.texts, config_of(self.model)))
            sentences.write(folder)
        write_json(folder / "metrics.json", metrics)
        return Produced()

    def _text_features(self, run: RunContext, sentences: SentenceRanking, images: Encoded) -> NDArray[np.float32]:
        import torch

        device = resolve_device(self.config.device, torch.cuda, "evaluate.device")
        is_trained = images.model == "trained"
        return sentence_features(run, self.model, sentences.texts, trained=is_trained, device=device)


class _Entry(NamedTuple):
    """A model and mode with its rankings, one per split."""

    model: str
    mode: str
    rankings: list[Ranking]


def _rank(features: NDArray[np.float32], rows: EvaluationRows, config: EvaluateConfig) -> list[Ranking]:
    from reid.ranking.metrics import evaluate_ranking

    pid, camid = rows.images.pid, rows.images.camid
    return [
        evaluate_ranking(
            features[query],
            features[gallery],
            pid[query],
            pid[gallery],
            camid[query],
            camid[gallery],
            max_rank=_MAX_RANK,
            top_k=config.top_k,
            exclude=exclude,
            rerank=config.rerank,
        )
        for query, gallery, exclude in rows.splits
    ]


def _result(entry: _Entry, *, drawn: bool) -> dict[str, Any]:
    """Return one result of metrics.json: means over the rankings, and scores per gallery if galleries were drawn."""
    each = [_measures(ranking) for ranking in entry.rankings]
    values = {name: [measures[name] for measures in each] for name in each[0]}
    spread = {name: float(np.std(found, ddof=1)) for name, found in values.items()} if len(each) > 1 else {}
    return {
        "model": entry.model,
        "mode": entry.mode,
        **{name: float(np.mean(found)) for name, found in values.items()},
        "cmc": np.mean([ranking.cmc for ranking in entry.rankings], axis=0).tolist(),
        "n_valid_queries": entry.rankings[0].n_valid,
        "n_skipped_queries": entry.rankings[0].n_skipped,
        **({"galleries": {"std": spread, "values": values}} if drawn else {}),
    }


def _measures(ranking: Ranking) -> dict[str, float]:
    ranks = {f"rank{rank}": float(ranking.cmc[rank - 1]) for rank in (1, 5, 10)}
    return {"mAP": ranking.mAP, "mINP": ranking.mINP, **ranks}


def _ranking_tables(entry: _Entry, images: ImageRows, split: RankingSplit) -> Iterator[pa.Table]:
    """Yield the rows of rankings.parquet, some thousand queries at a time."""
    ranking, query, gallery = entry.rankings[0], images.take(split.query), images.take(split.gallery)
    for start in range(0, ranking.n_valid, LIST_ROWS):
        rows = slice(start, start + LIST_ROWS)
        top_index, of_query = ranking.top_index[rows], query.take(ranking.query_index[rows])
        filled = top_index >= 0
        nearest = top_index[filled]
        columns = {
            "model": [entry.model] * len(of_query),
            "mode": [entry.mode] * len(of_query),
            "query_path": of_query.path,
            "query_pid": of_query.pid,
            "query_camid": of_query.camid,
            "ap": ranking.ap[rows],
            "inp": ranking.inp[rows],
            "first_hit": ranking.first_hit[rows],
            "n_relevant": ranking.n_relevant[rows],
            "top_paths": lists_of(gallery.path[nearest], filled),
            "top_pids": lists_of(gallery.pid[nearest], filled),
            "top_camids": lists_of(gallery.camid[nearest], filled),
            "top_scores": lists_of(ranking.top_score[rows][filled], filled),
        }
        yield pa.table(columns).cast(RANKINGS)
