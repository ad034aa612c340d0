"""Bytes that a captioning model takes in memory, from the headers of its weights and its config.json; loads nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from captioning.captioner import local_folder
from captioning.config import CaptionConfig
from captioning.hub import cached_snapshot
from captioning.model_folder import missing_files, stored_quantization
from data.weights import StoredTensor, model_tensors, read_model_json

_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED: Final = {"8bit": 1.0, "4bit": 0.5625}
"""Bytes per quantized weight; nf4 adds one float32 per block of 64 weights."""
_BLOCK: Final = re.compile(
    r"language_model\..*layers\.\d+\..*(proj|fc\d)\.weight$|^(model\.)?layers\.\d+\..*proj\.weight$"
)
"""Matrices of the language model's blocks, which quantization shrinks."""
_BILLIONS: Final = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)
_TEXT_TOKENS: Final = 128
"""Tokens of a prompt besides those of the image."""
_WORKING: Final = 4
"""Activations of a block that exist at the same time, in multiples of its widest one."""


class ModelSize(NamedTuple):
    """Size of a captioning model.

    parameters: number of weights. weights: their bytes in memory. per_image: bytes of the cache and the activations of
    one image in a batch; 0 if unknown. exact: False if the size is guessed from the name of a model that is not on this
    machine.
    """

    parameters: int
    weights: int
    per_image: int
    exact: bool

    def of_batch(self, images: int) -> int:
        """Return the bytes of the model while it captions a batch."""
        return self.weights + images * self.per_image


def model_size(config: CaptionConfig, *, squareness: float = 1.0) -> ModelSize | None:
    """Return the size of the model of `config`, or None if it runs on a server or its size is unknown.

    squareness: shorter side of the most square image in its longer ones (0 to 1). It decides how many tokens an image
    has at most where the padding is left out (`caption.image_tokens`).

    Raises WeightsError if the folder is unusable.
    """
    if config.engine != "transformers":
        return None
    folder = model_on_disk(config)
    if folder is None:
        return _by_name(config)
    tensors = model_tensors(folder)
    return ModelSize(
        parameters=sum(prod(tensor.shape) for tensor in tensors.values() if tensor.is_float),
        weights=_weights(tensors, folder, config),
        per_image=_per_image(tensors, read_model_json(folder / "config.json"), config, squareness),
        exact=True,
    )


def model_on_disk(config: CaptionConfig) -> Path | None:
    """Return the folder of the model if all of it is on this machine; None for a hub id that must be downloaded."""
    folder = local_folder(config.model)
    if folder is None:
        folder = cached_snapshot(config.model, config.revision)
    return None if folder is None or missing_files(folder) else folder


def _by_name(config: CaptionConfig) -> ModelSize | None:
    """Return the size that a name such as llava-1.5-7b-hf tells."""
    found = _BILLIONS.search(config.model.rpartition("/")[2].replace("-", " ").replace("_", " "))
    if found is None:
        return None
    parameters = int(1e9 * float(found[1]))
    each = _QUANTIZED.get(config.quantization, _BYTES[config.number_format])
    return ModelSize(parameters, int(parameters * each), 0, exact=False)


def _weights(tensors: Mapping[str, StoredTensor], folder: Path, config: CaptionConfig) -> int:
    if stored_quantization(folder) is not None:
        return sum(tensor.end - tensor.begin for tensor in tensors.values())
    plain = _BYTES[config.number_format]
    block = _QUANTIZED.get(config.quantization, plain)
    each = ((prod(tensor.shape), block if _BLOCK.search(name) else plain) for name, tensor in tensors.items())
    return int(sum(count * n_bytes for count, n_bytes in each))


def _per_image(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], config: CaptionConfig, squareness: float
) -> int:
    """Return the bytes of keys and values, and of the activations while the prompt is read."""
    text = {name: stored for name, stored in tensors.items() if "vision" not in name and len(stored.shape) > 1}
    keys = [stored.shape[0] for name, stored in text.items() if name.endswith("self_attn.k_proj.weight")]
    widest = max((stored.shape[0] for name, stored in text.items() if name.endswith("mlp.up_proj.weight")), default=0)
    share = 1.0 if config.image_tokens == "all" else squareness
    tokens = _image_tokens(settings, share) + _TEXT_TOKENS
    each = _BYTES[config.number_format]
    cache = 2 * sum(keys) * (tokens + config.token_limit)
    return int(each * (cache + _WORKING * widest * tokens))


def _image_tokens(settings: Mapping[str, Any], share: float) -> int:
    """Return the largest number of tokens that an image takes, by config.json.

    share: of the width or height of the square that the image fills; patches outside of it have no tokens.
    """
    vision = settings.get("vision_config") or {}
    side, patch = vision.get("image_size", 336), vision.get("patch_size", 14)
    tiles = 1
    for height, width in settings.get("image_grid_pinpoints") or ():
        tiles = max(tiles, 1 + (height // side) * (width // side))
    across = side // patch
    filled = min(across, math.ceil(across * share) + 1)  # the edges may lie within patches
    empty = across * (across - filled) if tiles == 1 else 0
    return (int(settings.get("image_seq_length") or across**2) - empty) * tiles
