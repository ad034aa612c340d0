"""Checks of the files in a LLaVA folder, before anything heavy is imported.

Used by `captioner`, which identifies a folder, and `llava_load`, which loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final

from captioning.chat_form import LLAVA, LLAVA_ONEVISION, MODEL_TYPES
from captioning.config import CaptionConfig
from data.errors import ConfigError, WeightsError, raise_problems
from data.weights import INDEX, WEIGHTS, few, file_problem, model_tensors, read_model_json, shard_names

REQUIRED_FILES: Final = ("config.json", "model*.safetensors", "tokenizer.json", "processor_config.json")
"""Files of a usable model folder; preprocessor_config.json can replace processor_config.json."""

READ_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
"""Patterns of the files that transformers reads from a model folder; a README does not change a caption."""

_CONFIG: Final = "config.json"
_PROCESSORS: Final = ("processor_config.json", "preprocessor_config.json")
# Files that transformers reads if they exist.
_OPTIONAL: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
_CHAT_TEMPLATE: Final = "chat_template.jinja"
_ADAPTERS: Final = "adapter_*"  # adapter_config.json, adapter_model.safetensors or .bin
# Parts of a LLaVA that run in this process, and what transformers takes for a part without model_type.
_PARTS: Final = {
    "text_config": ("llama", "mistral", "qwen2"),
    "vision_config": ("clip_vision_model", "siglip_vision_model", "dpt"),  # dpt: the embedded model
}
_DEFAULTS: Final = {
    LLAVA_ONEVISION: {"text_config": "qwen2", "vision_config": "siglip_vision_model"},
    LLAVA: {"text_config": "llama", "vision_config": "clip_vision_model"},
}
_SERVER: Final = (
    "a server can run any model: start one, such as vLLM, and set caption.engine=openai, caption.server.url and "
    "caption.model to the model's name there"
)
# Older and newer names that transformers maps to the same parameter.
_RENAMED: Final = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
)


def check_folder(folder: Path) -> None:
    """Raise WeightsError unless `folder` contains the files of a LLaVA, and each is what its name says.

    Reads the JSON files and the headers of the weights. Lists all missing files at once.
    """
    missing = missing_files(folder)
    if missing:
        raise WeightsError(f"no usable LLaVA model in {folder}: missing {', '.join(missing)}")
    _check_config(folder / _CONFIG)
    _check_others(folder)
    _check_tensors(folder)


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that `folder` lacks, with a note where that helps."""
    missing = _absent(folder, _CONFIG, "tokenizer.json")
    if len(_absent(folder, *_PROCESSORS)) == len(_PROCESSORS):
        missing.append(" or ".join(_PROCESSORS))
    return missing + _missing_weights(folder)


def _absent(folder: Path, *names: str) -> list[str]:
    missing = [folder / name for name in names if not (folder / name).is_file()]
    return [
        f"{path.name} (it is a link to {path.readlink()}, which does not exist)" if path.is_symlink() else path.name
        for path in missing
    ]


def _missing_weights(folder: Path) -> list[str]:
    if not _absent(folder, WEIGHTS):
        return []
    if not _absent(folder, INDEX):
        return _absent(folder, *sorted(set(shard_names(folder / INDEX).values())))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if pickled:
        return [f"{WEIGHTS} ({', '.join(pickled)} is pickle, which is never loaded: convert it to safetensors)"]
    return [f"{INDEX} (it lists the tensors of {few(shards)})"] if shards else _absent(folder, WEIGHTS)


def _check_config(path: Path) -> None:
    config = read_model_json(path)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise WeightsError(f"{path}: model_type is {kind!r}; expected {', '.join(MODEL_TYPES)}. Otherwise, {_SERVER}")
    problems = [f"{part} is missing" for part in _PARTS if part not in config]
    problems += [
        f"{part} must be an object, not {config[part]!r}"
        for part in _PARTS
        if part in config and not isinstance(config[part], dict)
    ]
    if not problems:
        problems = _unknown_parts(config)
    other = config.get("transformers_weights")
    if other not in (None, WEIGHTS, INDEX):
        problems.append(f"transformers_weights names {other!r}; the weights must be in {WEIGHTS} or {INDEX}")
    raise_problems(f"{path} does not describe a complete LLaVA", problems, WeightsError)


def _unknown_parts(config: Mapping[str, Any]) -> list[str]:
    """Return the parts that are not among the tested ones: another kind could give wrong captions without an error."""
    defaults = _DEFAULTS.get(config["model_type"], _DEFAULTS[LLAVA])
    problems = []
    for part, known in _PARTS.items():
        kind = config[part].get("model_type", defaults[part])
        if kind not in known:
            problems.append(f"{part}.model_type is {kind!r}; expected {', '.join(known)}. Otherwise, {_SERVER}")
    return problems


def _check_others(folder: Path) -> None:
    adapter = sorted(path.name for path in folder.glob(_ADAPTERS))
    if adapter:
        raise WeightsError(
            f"{folder} contains a PEFT adapter ({', '.join(adapter)}), not a complete model: merge it into its base "
            "model (`merge_and_unload` of peft) and save the result as safetensors in another folder"
        )
    for name in ("tokenizer.json", *_PROCESSORS, *_OPTIONAL):
        if (folder / name).is_file():
            read_model_json(folder / name)
    template = folder / _CHAT_TEMPLATE
    problem = file_problem(template) if template.is_file() else None
    if problem is not None:
        raise WeightsError(f"{template} {problem}")
    _check_normalization(folder)


def _check_normalization(folder: Path) -> None:
    """Raise WeightsError unless the file that transformers reads gives the normalization of pixels.

    transformers would silently use a default, whatever the other file says.
    """
    path, settings = _image_settings(folder)
    if _is_rgb(settings.get("image_mean")) and _is_rgb(settings.get("image_std")) and min(settings["image_std"]) > 0:
        return
    raise WeightsError(
        f"{path} must give image_mean and image_std of the model's training images, three numbers each (CLIP: "
        "[0.48145466, 0.4578275, 0.40821073] and [0.26862954, 0.26130258, 0.27577711])"
    )


def _image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file with the image processor's settings, and the settings: nested in the newer file, or the older."""
    newer, older = (folder / name for name in _PROCESSORS)
    nested = read_model_json(newer).get("image_processor") if newer.is_file() else None
    if isinstance(nested, dict):
        return newer, nested
    if not older.is_file():
        return newer, {}
    return older, read_model_json(older)


def _is_rgb(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(number) for number in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _check_tensors(folder: Path) -> None:
    """Raise WeightsError if a weight file is incomplete or two tensors belong to the same parameter."""
    tensors = model_tensors(folder)
    if not tensors:
        raise WeightsError(f"the weights in {folder} do not contain any tensors: download or copy them again")
    places: dict[str, str] = {}
    twice = []
    for name in tensors:
        first = places.setdefault(place(name), name)
        if first != name:
            twice.append(f"{first} and {name}")
    if twice:
        raise WeightsError(
            f"the weights in {folder} contain tensors under an older and a newer name, and only one can be used: "
            f"{few(twice)}; save the model again with one of them"
        )


def place(name: str) -> str:
    """Return the newest name of a LLaVA's tensor, whichever version saved it."""
    name = name.removeprefix("model.")
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def check_settings(folder: Path, config: CaptionConfig) -> None:
    """Raise ConfigError if caption.quantization contradicts the folder, or if its family cannot leave out padding.

    Reads only config.json; does nothing if it is missing or damaged, which `check_folder` reports.
    """
    stored = stored_quantization(folder)
    if stored is not None and stored != config.quantization:
        raise ConfigError(_disagreement(folder, stored, config.quantization))
    path = folder / _CONFIG
    kind = read_model_json(path).get("model_type") if path.is_file() and file_problem(path) is None else LLAVA
    if config.image_tokens != "all" and kind != LLAVA:
        raise ConfigError(
            f"caption.image_tokens={config.image_tokens} is for models without tiles (model_type llava), and {folder} "
            f"is a {kind}: set caption.image_tokens=all"
        )


def _disagreement(folder: Path, stored: str, setting: str) -> str:
    if stored in ("4bit", "8bit"):
        return (
            f"caption.quantization={setting}, but the weights in {folder} are stored in {stored} (quantization_config "
            f"in config.json): set caption.quantization={stored}"
        )
    return (
        f"the weights in {folder} are quantized by {stored} (quantization_config in config.json), which is not "
        "supported: use the unquantized model, with caption.quantization=4bit if memory is short"
    )


def stored_quantization(folder: Path) -> str | None:
    """Return how the weights in `folder` are quantized: "4bit", "8bit", the name of another method, or None."""
    path = folder / _CONFIG
    if not path.is_file() or file_problem(path) is not None:
        return None
    settings = read_model_json(path).get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise WeightsError(f"{path}: quantization_config must be an object, not {settings!r}")
    for key, name in (("load_in_4bit", "4bit"), ("load_in_8bit", "8bit")):
        if settings.get(key) or settings.get(f"_{key}"):
            return name
    return str(settings.get("quant_method", "an unknown method"))
