"""Loading of any LLaVA-1.5: the embedded one, a folder, or a hub id. Safetensors only, no code from the model's folder.

One path for all of them: find the folder (a hub id becomes its snapshot), check what must be in it, load it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from captioning.captioner import WANTED, local_folder
from captioning.config import CaptionConfig, Quantization
from data.device import resolve_device
from data.errors import WeightsError
from data.files import read_json

_HUB_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_TIMEOUT: Final = 5.0
_WITH_CLASS_TOKEN: Final = frozenset({"clip_vision_model", "dpt"})
_MOST_SHAPES: Final = 256
_LOADING: Final = Lock()
# Named by full path, as transformers >= 5 wants them. What is small or touches pixels stays in full precision.
_NOT_QUANTIZED: Final = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@dataclass(frozen=True, kw_only=True)
class Llava:
    """A loaded model.

    side: pixels of its square input. image_tokens: positions one image takes in the prompt. folder: where it came from.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    side: int
    image_tokens: int
    folder: Path


def load_llava(config: CaptionConfig) -> Llava:
    """Load the model and the processor that `config` names, onto its device.

    Raises WeightsError when files are missing, damaged or out of reach, ConfigError for an unusable device.
    """
    device = pick_device(config.device)
    folder = find_folder(config)
    check_folder(folder)
    dtype: torch.dtype = getattr(torch, config.number_format)
    # While it loads, transformers changes settings of the whole process: of two models that load at once, one keeps
    # random weights and says nothing of it.
    with _LOADING, _quiet():
        try:
            model = LlavaForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
                # SDPA attention is transformers' default wherever a part of the model has it.
                quantization_config=quantization_settings(config.quantization, dtype),
            )
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise WeightsError(
                f"the LLaVA model in {folder} cannot be loaded ({error}); wanted there: {', '.join(WANTED)}"
            ) from error
    model.eval()
    if config.compile:
        _compile(model, device)
    return Llava(
        model=model,
        processor=processor,
        device=device,
        dtype=dtype,
        side=model.config.vision_config.image_size,
        image_tokens=_match_processor(model, processor),
        folder=folder,
    )


def _compile(model: Any, device: torch.device) -> None:
    """Compile the two parts that take the time. On a CPU with the weights as constants, packed as its kernels like."""
    model.requires_grad_(False)
    for part in (model.model.vision_tower, model.model.language_model):
        part.forward = _set_for(torch.compile(part.forward), freezing=device.type == "cpu")


def _set_for(compiled: Callable[..., Any], *, freezing: bool) -> Callable[..., Any]:
    # Both are read while a call of a new shape is traced; as an option of torch.compile `freezing` would come too late
    # and be ignored. Above its limit, which all models of a process share, torch goes on without compiling.
    @wraps(compiled)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with inductor_config.patch(freezing=freezing), dynamo_config.patch(recompile_limit=_MOST_SHAPES):
            return compiled(*args, **kwargs)

    return forward


def pick_device(name: str) -> torch.device:
    """Return the device that `name` (auto, cpu, cuda, cuda:N) means on this machine.

    Raises ConfigError if it does not exist.
    """
    return torch.device(resolve_device(name, torch.cuda, "caption.device"))


def quantization_settings(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return bitsandbytes' settings; everything but the language model's layers stays as it is."""
    if quantization == "none":
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_NOT_QUANTIZED,
    )


def find_folder(config: CaptionConfig) -> Path:
    """Return the model's folder; a hub id is looked up in the local cache, and fetched when the hub can be reached."""
    folder = local_folder(config.model)
    return folder if folder is not None else _snapshot(config.model, config.revision)


def _snapshot(model: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(_HUB_FILES)}
    try:
        return Path(snapshot_download(model, etag_timeout=_HUB_TIMEOUT, **options))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise WeightsError(
            f"the weights of {model} (revision {revision or 'main'}) are neither in the hub cache of this machine nor "
            f"can they be fetched ({type(error).__name__}: {_first_line(error)}). Where the hub can be reached, run "
            f"`hf download {model}`; or put {', '.join(WANTED)} into a folder and set caption.model to it; or set "
            "caption.model to tiny, the embedded model"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")


def check_folder(folder: Path) -> None:
    """Raise WeightsError unless `folder` holds every file that a LLaVA needs, naming all that are missing."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        missing.append("processor_config.json or preprocessor_config.json")
    missing += _missing_weights(folder)
    if missing:
        raise WeightsError(f"no usable LLaVA model in {folder}: missing {', '.join(missing)}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "llava":
        raise WeightsError(f"{folder / 'config.json'} describes a model of type {kind!r}; wanted is a LLaVA-1.5: llava")


def _missing_weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        return [name for name in shards if not (folder / name).is_file()]
    if (folder / "model.safetensors").is_file():
        return []
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    note = f" ({', '.join(pickled)} is pickle, which is never loaded: convert it to safetensors)" if pickled else ""
    return [f"model.safetensors{note}"]


def _match_processor(model: Any, processor: Any) -> int:
    """Give the processor the model's own image settings and return how many tokens an image takes.

    Old processor files lack them, and then prompt and image features disagree by one token (575 against 576).
    """
    config = model.config
    vision = config.vision_config
    class_tokens = 1 if vision.model_type in _WITH_CLASS_TOKEN else 0
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    processor.num_additional_image_tokens = class_tokens
    processor.tokenizer.padding_side = "left"
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    return (vision.image_size // vision.patch_size) ** 2 + class_tokens - dropped


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own loading bars off the terminal for a moment."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
