"""The content of config.json in a train artifact: written by the train stage, read by loading, evaluation and study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from data.files import read_json
from reid.config.scgi import BEFORE_PROMPT_END
from reid.config.train import TrainConfig

CONFIG_FILE: Final = "config.json"
RECORDED_FILE: Final = "recorded.json"
"""Where a training was recorded besides its artifact; missing if nowhere. Keys: tensorboard, mlflow."""


class Kept(TypedDict):
    """The epoch of the model (from 0), the rule that chose it, and its scores at that epoch if evaluated."""

    epoch: int
    rule: str
    chosen_on: str | None
    measured_on: str | None
    measures: dict[str, float]


class Training(TypedDict):
    """The training in numbers."""

    images: int
    identities: int
    images_without_caption: int
    images_held_out: int
    identities_held_out: int
    steps: int
    kept: Kept


class Provenance(TypedDict):
    """The origin of a model. images, captions: fingerprints. weights: identity and description of the start weights."""

    dataset: str
    dataset_hash: str
    version: str | None
    images: str
    captions: str | None
    weights: dict[str, Any]
    python: str
    libraries: dict[str, str]


class TrainedModel(TypedDict):
    """A trained model. config: fields of `TrainConfig`. identities, cameras: of each class and camera number."""

    config: dict[str, Any]
    identities: list[int]
    cameras: NotRequired[list[int]]
    modes: NotRequired[list[str]]
    training: NotRequired[Training]
    provenance: NotRequired[Provenance]


def read_trained(folder: Path) -> TrainedModel:
    """Return config.json of the train artifact in `folder`. Raises DataError if the file is damaged."""
    content: TrainedModel = read_json(folder / CONFIG_FILE)
    return content


def trained_config(trained: TrainedModel) -> TrainConfig:
    """Return the config that a model was trained with.

    A config of an earlier version lacks newer settings. Their defaults are what training did at that time, except for
    the end of CLIP-SCGI's prompts.
    """
    written = {**trained["config"]}
    scgi = {"prompt_end": BEFORE_PROMPT_END, **written.get("scgi", {})}
    return TrainConfig.model_validate({**written, "scgi": scgi})
