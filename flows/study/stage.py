"""The stage of one run: train and evaluate, and keep the scores as one artifact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NotRequired, TypedDict

from data.artifacts.store import ArtifactRef, Produced
from data.files import read_json, write_json
from data.stages.stage import Ingredients, RunContext, Stage
from flows.study.oracle import oracles, room_of, text_oracle, true_attributes
from flows.study.rows import SCORES
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.config.trained import read_trained
from reid.evaluation.features import FeatureStage
from reid.evaluation.inputs import tested_images
from reid.evaluation.protocol import Protocol
from reid.evaluation.sentences.source import Sentences, find_sentences
from reid.evaluation.stage import STAGE_VERSION as EVALUATE_VERSION
from reid.evaluation.stage import EvaluateStage
from reid.inputs.evaluation_rows import evaluation_rows
from reid.training.stage import TrainStage

STAGE_VERSION: Final = 1
RUN_FILE: Final = "run.json"
_ORACLE_VERSION: Final = 1


class OracleResult(TypedDict):
    """Scores with the true attributes of all test images, fractions (`flows.study.oracle`).

    scores: by all attributes. visible: by those that can be seen in both images. text: of search by true captions.
    errors: of the model alone. room: how well attributes tell the people apart.
    """

    scores: dict[str, float]
    visible: dict[str, float]
    text: dict[str, float]
    errors: dict[str, int]
    room: dict[str, int]


class RunResult(TypedDict):
    """Contents of run.json.

    results: the scores of each model and mode. text_to_image: the section of that name of metrics.json, if it has one.
    oracle: of the trained model in image mode. captions, train, evaluation: fingerprints.
    """

    seconds: float | None
    steps: int
    train: str
    evaluation: str
    captions: str | None
    protocol: Protocol
    results: list[dict[str, Any]]
    text_to_image: NotRequired[dict[str, Any]]
    oracle: NotRequired[OracleResult]


@dataclass(frozen=True, kw_only=True)
class RunStage(Stage):
    """Train and evaluate one run of a study, reusing finished stages, and write the results as one artifact.

    captions: those of the training images, None for methods that do not read captions. sentences: the captioner's,
    whose query rows are searched for; the same for all variants. oracle: also score the model with the true attributes.
    """

    name: ClassVar[str] = "study_run"
    train: TrainConfig
    evaluate: EvaluateConfig
    captions: ArtifactRef | None
    sentences: ArtifactRef | None
    oracle: bool = False

    @property
    def _training(self) -> TrainStage:
        return TrainStage(captions=self.captions, config=self.train)

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return what the training and the evaluation depend on."""
        sentences = find_sentences(run.images, self.sentences, self.evaluate)
        return {
            "train": self._training.ingredients(run),
            "evaluate": {
                **tested_images(run.images),
                "config": self.evaluate.ranking_identity(),
                **({"sentences": sentences.identity} if isinstance(sentences, Sentences) else {}),
                "version": EVALUATE_VERSION,
            },
            **({"oracle": _ORACLE_VERSION} if self.oracle else {}),
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Write run.json."""
        training = self._training.plan(run)
        whole = not run.store.scratch(training.stage.name, training.fingerprint).exists()
        started = time.perf_counter()
        model = training.make(run)
        seconds = time.perf_counter() - started
        stage = EvaluateStage(model=model.ref, config=self.evaluate, captions=self.sentences)
        if self.oracle:
            stage.features.make(run)  # read by the evaluation and by the oracle
        evaluation = stage.make(run)
        metrics = read_json(evaluation.ref.folder / "metrics.json")
        result = RunResult(
            seconds=round(seconds, 1) if whole and not model.cached else None,  # unknown for a resumed training
            steps=read_trained(model.ref.folder)["training"]["steps"],
            train=model.ref.fingerprint,
            evaluation=evaluation.ref.fingerprint,
            captions=self.captions.fingerprint if self.captions else None,
            protocol=metrics["protocol"],
            results=[{name: row[name] for name in ("model", "mode", *SCORES)} for row in metrics["results"]],
        )
        if "text_to_image" in metrics:
            result["text_to_image"] = metrics["text_to_image"]
        if self.oracle:
            result["oracle"] = _oracle(stage.features, run, scratch)
        write_json(folder / RUN_FILE, result)
        return Produced()


def _oracle(features: FeatureStage, run: RunContext, scratch: Path) -> OracleResult:
    """Return the scores of the trained model in image mode with the true attributes."""
    rows = evaluation_rows(run.images, features.config)
    attributes = true_attributes(run.images, rows)
    found = {(each.model, each.mode): each for each in oracles(features, run, scratch)}["trained", "image"]
    return OracleResult(
        scores=dict(found.scores),
        visible=dict(found.visible),
        text=text_oracle(rows, attributes),
        errors=found.errors._asdict(),
        room=room_of(rows, attributes)._asdict(),
    )
