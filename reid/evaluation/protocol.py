"""The protocol of an evaluation, in words and as fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict

from data.stages.images import IndexedImages
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.evaluation.inputs import EvaluatedModel, config_of, other_dataset
from reid.inputs.evaluation_rows import EvaluationRows

NO_CAMERAS: Final = "cameras unknown: evaluated without the camera rule"
"""What tables say beside scores of a dataset without cameras."""
COMPOSED_ONLY: Final = (
    "training never showed CFF the fixed prompt of test time (train.scgi.fixed_prompt_ratio=0, as published), which "
    "can lower these scores; train.scgi.fixed_prompt_ratio=0.5 shows it for half of the images."
)
"""What stands beside scores of fused mode if CFF was trained with composed prompts only."""


class Protocol(TypedDict):
    """The protocol in metrics.json.

    test_hash: content of the test images. gallery_draws: 0 for the published split. cameras: only in a dataset without
    cameras, whose images are not excluded by camera. trained_on: the dataset that the model was trained on, if it is
    another one. notes: inference mode -> sentence to show beside the scores of this mode.
    """

    dataset: str
    reader: str
    version: str | None
    test_hash: str
    n_query: int
    n_gallery: int
    n_junk: int
    n_skipped_queries: int
    gallery_draws: int
    description: str
    cameras: NotRequired[Literal["unknown"]]
    trained_on: NotRequired[str]
    notes: NotRequired[dict[str, str]]


def protocol(
    images: IndexedImages, rows: EvaluationRows, config: EvaluateConfig, model: EvaluatedModel, *, skipped: int
) -> Protocol:
    """Return the protocol in metrics.json: dataset, version, sizes and rules.

    skipped: number of queries in the first split without a match.
    """
    about = images.description
    split, drawn = rows.splits[0], len(rows.splits) if rows.drawn else 0
    elsewhere = other_dataset(model, images)
    made: Protocol = {
        "dataset": about.name,
        "reader": about.reader,
        "version": about.version,
        "test_hash": images.contents()["ranked"][:32],
        "n_query": len(rows.images.pid[split.query]),
        "n_gallery": len(rows.images.pid[split.gallery]),
        "n_junk": rows.n_junk,
        "n_skipped_queries": skipped,
        "gallery_draws": drawn,
        "description": describe(config, drawn, cameras=rows.cameras, selected=_selected(model) and not elsewhere),
    }
    if elsewhere:
        made["trained_on"] = elsewhere
    if not rows.cameras:
        made["cameras"] = "unknown"
    if _composed_only(model):
        made["notes"] = {"fused": COMPOSED_ONLY}
    return made


def camera_note(protocol: Mapping[str, Any]) -> str:
    """Return `NO_CAMERAS` if the protocol in a metrics.json is that of a dataset without cameras, else ""."""
    return NO_CAMERAS if protocol.get("cameras") == "unknown" else ""


def mode_notes(protocol: Mapping[str, Any], modes: Collection[str] | None = None) -> list[str]:
    """Return what to show beside the scores of some modes, or of all, from the protocol in a metrics.json."""
    notes: Mapping[str, str] = protocol.get("notes", {})
    return [f"{mode.capitalize()} mode: {note}" for mode, note in notes.items() if modes is None or mode in modes]


def trained_elsewhere(protocol: Mapping[str, Any]) -> str:
    """Return "DATASET -> " if the protocol in a metrics.json is of a model trained on another dataset, else ""."""
    source = protocol.get("trained_on")
    return f"{source} -> " if source else ""


def describe(config: EvaluateConfig, drawn: int, *, cameras: bool, selected: bool) -> str:
    """Return the protocol in words.

    drawn: number of drawn galleries, 0 for the published split. cameras: False if the cameras are unknown. selected:
    the epoch of the model was selected on these test images.
    """
    sentences = (
        "Single query; cosine similarity of L2-normalized features (the same ranking as Euclidean distance); junk "
        "images (identity -1) are dropped.",
        _left_out(config, drawn, cameras=cameras),
        "AP is not interpolated; ties are ranked in gallery order.",
        "Features are averaged with those of the mirrored image." if config.flip else "",
        _reranking(config),
        "The epoch of the model was selected on these same images, so its scores are not comparable with others."
        if selected
        else "",
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _composed_only(model: EvaluatedModel) -> bool:
    """Return True if training never showed CFF the fixed prompt, which is its only prompt at test time."""
    if isinstance(model, TrainConfig):
        return False
    config = config_of(model)
    return config.method == "clip_scgi" and config.scgi.cff and config.scgi.cgi and not config.scgi.fixed_prompt_ratio


def _selected(model: EvaluatedModel) -> bool:
    """Return True if the epoch of a model was selected on the test images of the dataset that it was trained on."""
    if isinstance(model, TrainConfig):
        return False
    settings = config_of(model).validation
    return bool(settings.every) and settings.keep == "best" and settings.images == "test"


def _left_out(config: EvaluateConfig, drawn: int, *, cameras: bool) -> str:
    if drawn:
        return (
            f"Means over {drawn} galleries of one image per identity and all distractors, drawn with seeds 0 to "
            f"{drawn - 1}; the other test images are the queries. Images are not excluded by camera. Rankings are kept "
            "for the first gallery only."
        )
    if not cameras:
        return (
            "The cameras of this dataset are unknown, so images are not excluded by camera, and a match may be from the"
            " same camera as its query; queries without a match are skipped. Scores are not comparable with those of"
            " datasets with cameras."
        )
    if config.exclude == "same_camera":
        return (
            "Gallery images of the query's identity from its own camera are excluded; queries without a match from "
            "another camera are skipped."
        )
    return "Images are not excluded by camera; queries without a match are skipped."


def _reranking(config: EvaluateConfig) -> str:
    if config.rerank is None:
        return "No re-ranking."
    k1, k2, weight = config.rerank.k1, config.rerank.k2, config.rerank.weight
    return f"k-reciprocal re-ranking with k1 = {k1}, k2 = {k2}, lambda = {weight:g}."
