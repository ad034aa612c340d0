"""The CLIP of a trained model as a folder that open_clip loads, and what does not fit into CLIP beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import ClipScgiError
from data.files import write_json
from data.process.environment import exact_float32
from reid.clip_files.names import ARTIFACT_PREFIX
from reid.config.backbone import BackboneConfig
from reid.export.tokenizer import example_ids, write_tokenizer_config
from reid.models.backbone import open_clip_features, open_clip_shape
from reid.models.file_configs import OPEN_CLIP_CONFIG
from reid.precision import unit_rows
from reid.tasks.base import Task

CLIP_FILE: Final = "open_clip_model.safetensors"
BEYOND_FOLDER: Final = "beyond_clip"
"""A folder of its own, because a loader that looks for weights takes any .safetensors file beside the config."""
BEYOND_FILE: Final = "model.safetensors"
TOLERANCE: Final = 1e-4
"""Largest accepted difference between a number of a feature of length one in open_clip and here."""
_CHECKED: Final = 3


@dataclass(frozen=True, kw_only=True)
class OpenClipFiles:
    """What `write_open_clip` wrote.

    beyond: name -> number of tensors of each part that CLIP has no place for. difference: the largest one between
    features of open_clip and of the model without camera embeddings.
    """

    beyond: dict[str, int]
    difference: float


@exact_float32(torch)
def write_open_clip(folder: Path, task: Task, config: BackboneConfig) -> OpenClipFiles:
    """Write open_clip_config.json and the weights into `folder`, load them with open_clip, and compare the features.

    config: the backbone of `task`.

    Raises ConfigError if open_clip cannot build the model, ClipScgiError if its features differ by more than
    `TOLERANCE`.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in task.state_dict().items()}
    clip = {name.removeprefix(ARTIFACT_PREFIX): value for name, value in state.items() if _is_clip(name)}
    beyond = {name: value for name, value in state.items() if not _is_clip(name)}
    shape = open_clip_shape(config)
    own_tokenizer = config.name == "tiny"
    if own_tokenizer:  # open_clip then loads the tokenizer of this folder instead of OpenAI's
        shape["text_cfg"] = {**shape["text_cfg"], "hf_tokenizer_name": "tokenizer.json"}
        write_tokenizer_config(folder, task.backbone)
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": shape, "preprocess_cfg": _preprocessing(task)})
    save_file(clip, folder / CLIP_FILE, metadata={"format": "pt"})
    if beyond:
        (folder / BEYOND_FOLDER).mkdir()
        save_file(beyond, folder / BEYOND_FOLDER / BEYOND_FILE, metadata={"format": "pt"})
    return OpenClipFiles(beyond=_parts(beyond), difference=_difference(folder, task))


def _is_clip(name: str) -> bool:
    return name.startswith(ARTIFACT_PREFIX)


def _parts(tensors: dict[str, Tensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in tensors:
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return counts


def _preprocessing(task: Task) -> dict[str, object]:
    """Return the settings of open_clip's transform that resizes and normalizes as the training did."""
    shape = task.preprocess
    return {
        "size": [shape.height, shape.width],
        "mode": "RGB",
        "mean": list(shape.mean),
        "std": list(shape.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def _difference(folder: Path, task: Task) -> float:
    """Return the largest difference between features of open_clip and of the model. Raises ClipScgiError above 1e-4."""
    shape = task.preprocess
    images_BCHW = torch.randn(_CHECKED, 3, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    ids_BT = example_ids(task.backbone)
    with torch.inference_mode():
        ours = (
            unit_rows(task.backbone.image(images_BCHW).joint_BD),
            unit_rows(task.backbone.text_from_ids(ids_BT, ids_BT.argmax(dim=1))),
        )
    theirs = open_clip_features(folder, images_BCHW, ids_BT)
    largest = max(float((mine - other).abs().max()) for mine, other in zip(ours, theirs, strict=True))
    if not largest <= TOLERANCE:  # also True for NaN
        raise ClipScgiError(
            f"open_clip's features differ from the model's by {largest:.1e} (allowed: {TOLERANCE:.0e}), so nothing was "
            "written; export with the versions in requirements.lock"
        )
    return largest
