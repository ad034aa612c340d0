"""The inputs of an evaluation: its model and its test images, with what identifies them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from data.artifacts.fingerprint import digest, digest_file
from data.artifacts.store import SIDECAR, ArtifactRef, ArtifactStore
from data.errors import WeightsError
from data.files import read_json
from data.stages.images import IndexedImages
from reid.config.train import TrainConfig
from reid.config.trained import TrainedModel, read_trained, trained_config
from reid.inputs.captions import weights_identity

EvaluatedModel = ArtifactRef | TrainConfig
"""A train artifact, or the config whose backbone is evaluated without any training (zero-shot)."""
_MODEL: Final = "model.safetensors"


def tested_images(images: IndexedImages) -> dict[str, Any]:
    """Return the ingredients of an evaluation that come from the index; training images are not among them."""
    about = images.description
    return {
        "images": images.contents()["ranked"],
        "dataset": {"name": about.name, "reader": about.reader, "version": about.version},
    }


def config_of(model: EvaluatedModel) -> TrainConfig:
    """Return the config of a model."""
    if isinstance(model, TrainConfig):
        return model
    return trained_config(read_trained(model.folder))


def model_identity(model: EvaluatedModel, store: ArtifactStore) -> dict[str, Any]:
    """Return the ingredients of an evaluation that come from the model, except its training images and captions.

    Raises WeightsError if the weights of an untrained model are unavailable.
    """
    if isinstance(model, TrainConfig):
        weights = weights_identity(store, model.backbone, model.seed)
        return {"untrained": {"backbone": digest(model.backbone.identity()), "weights": digest(weights)}}
    described = read_trained(model.folder)
    return {
        **_file_digest(model),
        "config": digest(trained_config(described).identity()),
        "identities": len(described["identities"]),
        "weights": digest(_provenance(described).get("weights")),
    }


def trained_on(model: EvaluatedModel) -> str | None:
    """Return the name of the dataset that a model was trained on, None if it is unknown or the model is untrained."""
    if isinstance(model, TrainConfig):
        return None
    return _provenance(read_trained(model.folder)).get("dataset")


def trained_hash(model: ArtifactRef) -> str:
    """Return the first digits of the hash of the dataset that a model was trained on, "" if it is unknown."""
    return str(_provenance(read_trained(model.folder)).get("dataset_hash", ""))[:8]


def other_dataset(model: EvaluatedModel, images: IndexedImages) -> str | None:
    """Return the name of the dataset that a model was trained on if it is not that of `images`, else None.

    The training images decide. A different dataset of the same name is returned with the first digits of its hash,
    such as "folders (4dd53bfe)".
    """
    source = trained_on(model)
    if isinstance(model, TrainConfig) or source is None or _trained_here(model, images):
        return None
    return named_apart(source, images.description.name, trained_hash(model))


def named_apart(name: str, other: str, short_hash: str) -> str:
    """Return a name, with a hash if it equals the `other` name."""
    return f"{name} ({short_hash})" if name == other and short_hash else name


def _trained_here(model: ArtifactRef, images: IndexedImages) -> bool:
    """Return True if a model was trained on the train split of `images`.

    A copy without artifact.json does not have the digest of its training images, so the hash of the whole dataset
    decides, and without that its name.
    """
    sidecar = read_json(model.folder / SIDECAR) if (model.folder / SIDECAR).is_file() else {}
    trained = sidecar.get("ingredients", {}).get("images")
    if trained:
        return bool(trained == images.contents()["train"])
    source, about = _provenance(read_trained(model.folder)), images.description
    if source.get("dataset_hash"):
        return bool(source["dataset_hash"] == about.dataset_hash)
    return source.get("dataset") == about.name


def untrained_problem(model: ArtifactRef, store: ArtifactStore) -> str:
    """Return why the model before training cannot be evaluated here, "" if it can.

    The weights that the training started from may be missing on this machine, or be other ones.
    """
    described = read_trained(model.folder)
    config = trained_config(described)
    try:
        here = weights_identity(store, config.backbone, config.seed)
    except WeightsError as error:
        return f"the weights that its training started from are unavailable ({error})"
    known = _provenance(described).get("weights", {})
    if known and any(known.get(key) != value for key, value in here.items()):
        return f"train.backbone.weights={config.backbone.weights} is another file here than where it was trained"
    return ""


def _provenance(described: TrainedModel) -> Mapping[str, Any]:
    """Return where a model comes from; the files of other programs may not say it."""
    return described.get("provenance", {})


def _file_digest(model: ArtifactRef) -> dict[str, str]:
    """Return the name and digest of the model file; the folder may be a copy without artifact.json."""
    if (model.folder / SIDECAR).is_file():
        return model.digests_of(_MODEL)
    return {_MODEL: digest_file(model.folder / _MODEL)}
