"""What the artifact store says about a trained model: its data, captions, settings and scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts.fingerprint import digest_file
from data.artifacts.store import ArtifactRef, ArtifactStore
from data.errors import DataError
from data.files import read_json
from data.stages.images import DESCRIPTION_FILE, DatasetDescription
from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.config.trained import Provenance, Training, read_trained, trained_config
from reid.evaluation.intervals import Interval, query_scores_of, score_intervals
from reid.evaluation.protocol import mode_notes
from reid.evaluation.sentences.measure import TEXT_RANKINGS_FILE, TextToImage
from reid.evaluation.sentences.scores import read_sentence_scores, sentence_intervals
from reid.training.checkpoint import MODEL

METRICS: Final = ("mAP", "rank1", "rank5", "rank10", "mINP")
TEXT_METRICS: Final = ("mAP", "rank1", "rank5", "rank10")
_CAPTIONS: Final = "captions.parquet"
_CAPTION_STAGES: Final = ("caption", "correct", "caption_control")
"""Stages that write the captions that training reads: a model's, corrected ones, the controls of a study."""
_SOURCE: Final = "source"
_CAPTIONERS: Final = ("model_id", "model_revision", "template_id", "captioner_fingerprint")


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """The captions that a model was trained with.

    captioners: distinct (model, revision, template, fingerprint) of the rows. statuses, sources: status, and whose text
    it is (model, human, import), -> number of images of the train split; no sources if corrections were not applied.
    """

    captioners: list[tuple[str, str, str, str]]
    statuses: dict[str, int]
    sources: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """Scores of one model and mode on one dataset.

    model: trained or untrained. percent: metric -> percent. intervals: metric -> 95 % interval in percent; None for
    drawn galleries and few queries. n_queries: evaluated queries.
    """

    model: str
    mode: str
    percent: dict[str, float]
    intervals: dict[str, Interval] | None
    n_queries: int


class TextRow(NamedTuple):
    """Text to image of one model, trained or untrained. intervals: None for sentences about few people."""

    model: str
    percent: dict[str, float]
    intervals: dict[str, Interval] | None


class TextScores(NamedTuple):
    """Text to image of an evaluation. about: the key text_to_image of metrics.json."""

    about: TextToImage
    rows: list[TextRow]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation of the model.

    dataset: its name; if other test images have the same name, with the first digits of the hash of the dataset, or of
    the test images if the index is not known. protocol: in words. text: None if text to image was not measured.
    """

    dataset: str
    test_hash: str
    fingerprint: str
    n_gallery: int
    protocol: str
    rows: list[ScoreRow]
    text: TextScores | None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Everything known about a trained model; None or empty where it is not known in this store.

    settings: of the training, without paths of the machine and without what does not change the result.
    """

    fingerprint: str
    config: TrainConfig
    settings: dict[str, Any]
    cameras: list[int]
    training: Training | None
    origin: Provenance | None
    dataset: DatasetDescription | None
    captioned: Captioned | None
    evaluations: list[Evaluation]


def model_facts(model: ArtifactRef, store: ArtifactStore) -> ModelFacts:
    """Return what config.json of a train artifact and `store` say about it.

    Evaluations are those in `store` that read exactly this model file, newest last. Artifacts that are not in the store
    any more, or damaged, are left out.
    """
    described = read_trained(model.folder)
    config = trained_config(described)
    origin = described.get("provenance")
    captions = origin["captions"] if origin else None
    return ModelFacts(
        fingerprint=model.fingerprint,
        config=config,
        settings=_settings(config),
        cameras=described.get("cameras", []) if config.sie else [],
        training=described.get("training"),
        origin=origin,
        dataset=_dataset(store.folder("index", origin["images"])) if origin else None,
        captioned=_captioned(store, captions) if captions else None,
        evaluations=_evaluations(model, store),
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that can change the result; a weights file by its name only."""
    plain, kept = config.model_dump(mode="json"), config.identity()
    settings = {name: value for name, value in plain.items() if name in kept and name != "device"}
    return {**settings, "backbone": {**settings["backbone"], "weights": _weights_name(config.backbone)}}


def _weights_name(config: BackboneConfig) -> str:
    return Path(config.weights).name if config.is_file else config.weights


def _dataset(folder: Path) -> DatasetDescription | None:
    try:
        return DatasetDescription.model_validate(read_json(folder / DESCRIPTION_FILE))
    except (DataError, OSError, ValueError):
        return None


def _captioned(store: ArtifactStore, fingerprint: str) -> Captioned | None:
    paths = (store.folder(stage, fingerprint) / _CAPTIONS for stage in _CAPTION_STAGES)
    path = next((path for path in paths if path.is_file()), None)
    try:
        return None if path is None else _read_captions(path)
    except (OSError, KeyError, pa.ArrowInvalid):
        return None


def _read_captions(path: Path) -> Captioned:
    corrected = _SOURCE in pq.read_schema(path).names
    table = pq.read_table(path, columns=[*_CAPTIONERS, "split", "status", *([_SOURCE] if corrected else [])])
    rows = table.group_by(list(_CAPTIONERS), use_threads=False).aggregate([]).to_pylist()
    captioners = sorted({tuple(str(row[name]) for name in _CAPTIONERS) for row in rows})
    trained = table.filter(pc.equal(table["split"], "train"))
    return Captioned(
        captioners=[(a, b, c, d) for a, b, c, d in captioners],
        statuses=_counts(trained["status"]),
        sources=_counts(trained[_SOURCE]) if corrected else {},
    )


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    found = [(str(entry["values"]), entry["counts"]) for entry in pc.value_counts(column).to_pylist()]
    return dict(sorted(found, key=lambda pair: -pair[1]))


def _evaluations(model: ArtifactRef, store: ArtifactStore) -> list[Evaluation]:
    digest = digest_file(model.folder / MODEL)
    found = [
        sidecar
        for sidecar in sorted(store.sidecars("evaluate"), key=lambda one: one.used)
        if sidecar.fingerprint and _of_model(sidecar.ingredients, digest)
    ]
    read = [_evaluation(sidecar.folder, sidecar.fingerprint or "") for sidecar in found]
    return _named_apart([one for one in read if one is not None], store)


def _named_apart(evaluations: list[Evaluation], store: ArtifactStore) -> list[Evaluation]:
    """Return evaluations whose datasets have different names if their test images differ."""
    tested = {(one.dataset, one.test_hash) for one in evaluations}
    shared = {name for name, count in Counter(name for name, _ in tested).items() if count > 1}
    if not shared:
        return evaluations
    hashes = _dataset_hashes(store)

    def named(one: Evaluation) -> Evaluation:
        short = hashes.get(one.test_hash, one.test_hash)[:8]
        return replace(one, dataset=f"{one.dataset} ({short})") if one.dataset in shared else one

    return [named(one) for one in evaluations]


def _dataset_hashes(store: ArtifactStore) -> dict[str, str]:
    """Return the hash of the test images (as in metrics.json) -> hash of the dataset, of the indexes in `store`."""
    found = {}
    for sidecar in store.sidecars("index"):
        about = _dataset(sidecar.folder)
        if about is not None and "ranked" in sidecar.contents:
            found[sidecar.contents["ranked"][:32]] = about.dataset_hash
    return found


def _of_model(ingredients: dict[str, Any], digest: str) -> bool:
    identity = ingredients.get("model")
    return isinstance(identity, dict) and identity.get(MODEL) == digest


def _text_scores(about: TextToImage | None, rankings: Path) -> TextScores | None:
    if about is None:
        return None
    scored = read_sentence_scores(rankings)
    rows = [
        TextRow(
            model=row["model"],
            percent={name: 100 * value for name, value in row.items() if isinstance(value, float)},
            intervals=sentence_intervals(scored[row["model"]]),
        )
        for row in about["results"]
    ]
    return TextScores(about, rows)


def _evaluation(folder: Path, fingerprint: str) -> Evaluation | None:
    try:
        metrics = read_json(folder / "metrics.json")
        queries = query_scores_of(metrics, folder / "rankings.parquet")
        return Evaluation(
            dataset=metrics["protocol"]["dataset"],
            test_hash=metrics["protocol"].get("test_hash", ""),
            fingerprint=fingerprint,
            n_gallery=metrics["protocol"]["n_gallery"],
            protocol=" ".join([metrics["protocol"]["description"], *mode_notes(metrics["protocol"])]),
            rows=[
                ScoreRow(
                    model=row["model"],
                    mode=row["mode"],
                    percent={name: 100 * row[name] for name in METRICS},
                    intervals=score_intervals(queries.get((row["model"], row["mode"]))),
                    n_queries=row["n_valid_queries"],
                )
                for row in metrics["results"]
            ],
            text=_text_scores(metrics.get("text_to_image"), folder / TEXT_RANKINGS_FILE),
        )
    except (DataError, OSError, KeyError, TypeError, pa.ArrowInvalid):
        return None
