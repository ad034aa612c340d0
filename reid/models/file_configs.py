"""The config beside a CLIP file: the activation, the image size, and settings that tensor shapes do not show.

Reads open_clip's open_clip_config.json, Hugging Face's config.json, and the config.json of a train artifact. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from data.errors import WeightsError
from data.weights import read_model_json
from reid.clip_files.grids import Grid, patch_grid
from reid.clip_files.names import Layout
from reid.config.backbone import RANDOM, Activation, BackboneConfig

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
CONFIG: Final = "config.json"
# Defaults of transformers' CLIPVisionConfig and CLIPTextConfig, which saved configs may omit.
_HF_VISION: Final = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 32,
}
_HF_TEXT: Final = {
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
_HF_ACTIVATIONS: Final[dict[str, Activation]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """The config of a weights file.

    path: the config file. activation: of all blocks. grid: for its image size; None if it has no image size. model: its
    settings in open_clip's form, to be compared with the model that is built.
    """

    path: Path
    activation: Activation
    grid: Grid | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


def config_beside(file: Path, layout: Layout) -> FileConfig | None:
    """Return the config in the folder of `file`, preferring the one of the file's naming; None without one.

    A config.json of something else is ignored. Raises WeightsError if a config cannot be read, describes an unsupported
    model, or two configs disagree on the activation.
    """
    named = {"open_clip": (OPEN_CLIP_CONFIG, CONFIG), "hugging_face": (CONFIG, OPEN_CLIP_CONFIG)}[layout.naming]
    paths = [path for name in named if (path := file.parent / name).is_file() or path.is_symlink()]
    found = [config for path in paths if (config := _read(path)) is not None]
    if len({config.activation for config in found}) > 1:
        said = " and ".join(f"{config.path} says {config.activation}" for config in found)
        raise WeightsError(f"{said}: keep the config that {file} was trained with, and move the other one away")
    return found[0] if found else None


def _read(path: Path) -> FileConfig | None:
    content = read_model_json(path)
    try:
        if "identities" in content and "config" in content:
            return _artifact(path, content["config"]["backbone"])
        if "vision_config" in content or "text_config" in content or content.get("model_type") == "clip":
            return _hugging_face(path, content)
        model = content.get("model_cfg", content.get("clip", content))
        if "vision_cfg" in model or "quick_gelu" in model:
            return _open_clip(path, model)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path} cannot be read ({type(error).__name__}: {error}): correct it, or move the weights to a folder "
            "without it and set train.backbone.activation"
        ) from error
    if path.name == OPEN_CLIP_CONFIG:
        raise WeightsError(f'{path} has no "model_cfg": it is not the config of an open_clip model')
    return None


def _open_clip(path: Path, model: Mapping[str, Any]) -> FileConfig:
    vision, quick = model.get("vision_cfg", {}), model.get("quick_gelu")
    if quick not in (True, False, None) or isinstance(quick, float):
        raise WeightsError(f"{path}: quick_gelu must be true or false, not {quick!r}: correct it")
    return FileConfig(
        path=path,
        activation="quick_gelu" if quick else "gelu",
        grid=_open_clip_grid(vision),
        model={name: value for name, value in model.items() if name not in ("quick_gelu", "custom_text")},
    )


def _open_clip_grid(vision: Mapping[str, Any]) -> Grid | None:
    if "image_size" not in vision:
        return None
    size = _pair(vision["image_size"])
    if isinstance(vision.get("layers"), list):
        return size[0] // 32, size[1] // 32
    return patch_grid(size, int(vision.get("patch_size", 16)))


def _pair(size: Any) -> Grid:
    height, width = size if isinstance(size, list) else (size, size)
    return int(height), int(width)


def _hugging_face(path: Path, content: Mapping[str, Any]) -> FileConfig:
    kind = content.get("model_type", "clip")
    if kind != "clip":
        raise WeightsError(f"{path} describes a model of type {kind!r}; only Hugging Face models of type 'clip' fit")
    # Old files have overrides under a second name, which transformers prefers.
    vision, text = (
        {**defaults, **(content.get(f"{part}_config") or {}), **(content.get(f"{part}_config_dict") or {})}
        for part, defaults in (("vision", _HF_VISION), ("text", _HF_TEXT))
    )
    stated = {str(tower["hidden_act"]) for tower in (vision, text)}
    if len(stated) > 1 or not stated <= _HF_ACTIVATIONS.keys():
        raise WeightsError(
            f"{path} asks for the activations {sorted(stated)}; both towers must have quick_gelu, or both gelu"
        )
    return FileConfig(
        path=path,
        activation=_HF_ACTIVATIONS[stated.pop()],
        grid=patch_grid(_pair(vision["image_size"]), int(vision["patch_size"])),
        model=_as_open_clip(vision, text),
    )


def _as_open_clip(vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a Hugging Face config that tensor shapes do not show, with open_clip's names."""
    return {
        "vision_cfg": {
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "norm_kwargs": _norm(vision["layer_norm_eps"]),
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            "heads": text["num_attention_heads"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            "norm_kwargs": _norm(text["layer_norm_eps"]),
            "layers": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "pool_type": _pooling(text),
        },
    }


def _norm(epsilon: float) -> dict[str, float] | None:
    """Return open_clip's form of a layer norm's epsilon; None is PyTorch's default."""
    return None if epsilon == 1e-5 else {"eps": epsilon}


def _pooling(text: Mapping[str, Any]) -> str:
    """Return where the text feature is read; "argmax" is the end token, the highest id of the vocabulary.

    In old files id 2 means the same, whatever it is in the vocabulary (transformers, CLIPTextModel).
    """
    end = text["eos_token_id"]
    highest = int(text["vocab_size"]) - 1
    return "argmax" if end == 2 or end >= highest else f"the first token of id {end}"


def _artifact(path: Path, backbone: Mapping[str, Any]) -> FileConfig:
    trained = BackboneConfig(
        weights=RANDOM, **{name: backbone[name] for name in ("name", "height", "width", "stride") if name in backbone}
    )
    # Older models have no such setting and the activation of their architecture.
    stated = backbone.get("activation", "auto")
    return FileConfig(path=path, activation=trained.own_activation if stated == "auto" else stated, grid=trained.grid)
