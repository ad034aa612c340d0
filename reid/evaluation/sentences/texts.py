"""Features of sentences by the text tower of a model, which training does not change.

Shapes: S sentences, D joint width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.artifacts.store import ArtifactRef
from data.columns.texts import Texts
from data.stages.stage import RunContext
from reid.config.train import TrainConfig
from reid.config.trained import read_trained
from reid.evaluation.inputs import EvaluatedModel, config_of, untrained_problem
from reid.inputs.captions import caption_features, text_features

Float32s = NDArray[np.float32]


def sentence_features(run: RunContext, model: EvaluatedModel, texts: Texts, *, trained: bool, device: str) -> Float32s:
    """Return the features of sentences, [S, D], by the model as trained or as it was before.

    If the weights from which a training started are here, the trained text tower is theirs, and the features come from
    the stage ``text``, which encodes a set of sentences once for all models with that tower. Otherwise the tower of the
    model file encodes them.
    """
    if trained and isinstance(model, ArtifactRef) and not _has_known_tower(run, model):
        return _of_model_file(model, texts, device)
    config = config_of(model)
    found = caption_features(run, texts, config=config.backbone, seed=config.seed, device=device)
    return found.features_MD[found.rows_N]


def _has_known_tower(run: RunContext, model: ArtifactRef) -> bool:
    """Return True if the model names the weights that its training started from, and they are here."""
    known = read_trained(model.folder).get("provenance", {}).get("weights")
    return bool(known) and not untrained_problem(model, run.store)


def _of_model_file(model: ArtifactRef, texts: Texts, device: str) -> Float32s:
    from reid.training.checkpoint import load_task

    distinct = texts.sorted_distinct()
    return text_features(load_task(model.folder, device).backbone, distinct)[texts.places_in(distinct)]


def count_truncated(texts: Texts, config: TrainConfig) -> int:
    """Return how many sentences are longer than the text tower reads; their last words are not read."""
    from reid.models.backbone import context_of, tokenizer_of

    tokenizer, most = tokenizer_of(config.backbone), context_of(config.backbone) - 2
    distinct = texts.sorted_distinct()
    is_long = np.fromiter((len(tokenizer.words(text)) > most for text in distinct), dtype=np.bool_, count=len(distinct))
    return int(is_long[texts.places_in(distinct)].sum())
