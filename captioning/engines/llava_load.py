"""Load any LLaVA-1.5: the embedded one, a folder, or a hub id. Safetensors only, no code from the model's folder.

One path for all of them: find the folder (a hub id becomes its snapshot), check its files, load it, check the result.
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
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration
from transformers.utils import logging as transformers_logging

from captioning.captioner import folder_of
from captioning.config import CaptionConfig, Quantization
from captioning.engines.llava_check import (
    check_files_finite,
    check_finite,
    check_formats,
    check_loading,
    check_processor,
    check_tensors,
    token_ids_only,
)
from captioning.hub import fetch_snapshot, first_line
from captioning.model_folder import WANTED, check_folder, check_settings, stored_quantization
from data.device import resolve_device
from data.errors import ClipScgiError, ConfigError, WeightsError

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

    The model is whole: every parameter and buffer comes from the folder, is finite, and has the format that `config`
    says. Leaves torch's random state as it was. Raises WeightsError when files are missing, damaged, unfit or out of
    reach, ConfigError for an unusable device or settings that contradict the folder.
    """
    device = pick_device(config.device)
    folder = ensure_folder(config)
    check_folder(folder)
    check_settings(folder, config)
    with _LOADING, _quiet(), _same_random_state(device), explained(folder, device):
        model, processor = _load(folder, config, device)
        check_processor(model, processor, folder)
    model.eval()
    # Replies are greedy: transformers would apply whatever else the folder's generation_config.json asks for.
    model.generation_config = token_ids_only(model.generation_config)
    return Llava(
        model=model,
        processor=processor,
        device=device,
        dtype=getattr(torch, config.number_format),
        side=model.config.vision_config.image_size,
        image_tokens=_match_processor(model, processor),
        folder=folder,
    )


def _load(folder: Path, config: CaptionConfig, device: torch.device) -> tuple[Any, Any]:
    """Return the checked model and its processor, which is not checked yet."""
    dtype: torch.dtype = getattr(torch, config.number_format)
    check_tensors(folder)
    if config.quantization != "none":  # a NaN may be lost when it is quantized
        check_files_finite(folder)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model, found = LlavaForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        # SDPA attention is transformers' default wherever a part of the model has it.
        quantization_config=quantization_settings(folder, config.quantization, dtype),
        output_loading_info=True,
    )
    check_loading(folder, found)
    check_finite(model, folder, dtype)
    check_formats(model, folder, config)
    return model, processor


@contextmanager
def explained(folder: Path, device: torch.device) -> Iterator[None]:
    """Turn whatever the libraries raise over a folder into one error that names it."""
    try:
        yield
    except ClipScgiError:
        raise
    except torch.OutOfMemoryError as error:
        raise ClipScgiError(
            f"{device} does not have enough memory for the model in {folder}: set caption.quantization=4bit, "
            "caption.device=cpu, or a smaller caption.model"
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"the model in {folder} needs a package that is not installed: {first_line(error)}"
        ) from error
    except Exception as error:  # tokenizers raises bare Exception, transformers what its parts raise
        raise WeightsError(
            f"the LLaVA model in {folder} cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            f"wanted there: {', '.join(WANTED)}, all of one model"
        ) from error


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were: transformers draws initial weights even where it then loads others."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def compile_llava(llava: Llava) -> None:
    """Compile the two parts that take the time. On a CPU with the weights as constants, packed as its kernels like."""
    llava.model.requires_grad_(False)
    for part in (llava.model.model.vision_tower, llava.model.model.language_model):
        part.forward = _set_for(torch.compile(part.forward), freezing=llava.device.type == "cpu")


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


def quantization_settings(folder: Path, quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return bitsandbytes' settings; everything but the language model's layers stays as it is.

    None where nothing is to be quantized, or the folder is quantized already: its own config.json then says how.
    """
    if quantization == "none" or stored_quantization(folder) is not None:
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_NOT_QUANTIZED,
    )


def ensure_folder(config: CaptionConfig) -> Path:
    """Return the model's folder; download a hub id that is not in the local cache."""
    folder = folder_of(config)
    return folder if folder is not None else fetch_snapshot(config.model, config.revision)


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
    """Keep transformers' own loading bars and load report off the terminal for a moment: one message says it all."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(max(verbosity, transformers_logging.ERROR))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
