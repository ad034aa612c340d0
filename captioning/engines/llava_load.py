"""Loading of any LLaVA: the embedded one, a folder, or a hub id. Only safetensors, no code from the folder.

All take the same path: find the folder (the snapshot of a hub id), check its files, load it, check the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, Final, ParamSpec, TypeVar

import torch
from torch._dynamo import config as dynamo_config
from torch._inductor import config as inductor_config
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from captioning.captioner import folder_of
from captioning.chat_form import ChatForm, read_chat_form
from captioning.config import CaptionConfig, Quantization
from captioning.engines.family import NOT_QUANTIZED, Family
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
from captioning.model_folder import REQUIRED_FILES, check_folder, check_settings, stored_quantization
from data.device import resolve_device
from data.errors import ClipScgiError, ConfigError, WeightsError

_MOST_SHAPES: Final = 256
_LOADING: Final = Lock()

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Llava:
    """A loaded model.

    family: the views that it sees of an image. form: how it is prompted. folder: where it is stored.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    family: Family
    form: ChatForm
    folder: Path


def load_llava(config: CaptionConfig) -> Llava:
    """Load the model and the processor of `config` onto its device.

    Every parameter and buffer comes from the folder, is finite, and has the format that `config` sets. Torch's random
    state does not change. Raises WeightsError if files are missing, damaged, unsuitable or unavailable, and ConfigError
    for an unusable device or settings that contradict the folder.
    """
    device = pick_device(config.device)
    folder = ensure_folder(config)
    check_folder(folder)
    check_settings(folder, config)
    with _LOADING, _quiet(), _same_random_state(device), explained(folder, device):
        model, processor = _load(folder, config, device)
        check_processor(model, processor, folder)
        family = Family.of(model.config)
        family.adjust(processor, model.config)
        form = checked_form(processor, folder)
    model.eval()
    # Replies are greedy: transformers would apply all other settings of the folder's generation_config.json.
    model.generation_config = token_ids_only(model.generation_config)
    return Llava(
        model=model,
        processor=processor,
        device=device,
        dtype=getattr(torch, config.number_format),
        family=family,
        form=form,
        folder=folder,
    )


def _load(folder: Path, config: CaptionConfig, device: torch.device) -> tuple[Any, Any]:
    """Return the checked model and its processor, still unchecked."""
    dtype: torch.dtype = getattr(torch, config.number_format)
    check_tensors(folder)
    if config.quantization != "none":  # quantization may hide a NaN
        check_files_finite(folder)
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    quantized = quantization_settings(folder, config.quantization, dtype)
    model, found = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        # transformers uses SDPA attention by default for every part that supports it.
        output_loading_info=True,
        **({"quantization_config": quantized} if quantized is not None else {}),  # None would replace the folder's own
    )
    check_loading(folder, found)
    check_finite(model, folder, dtype)
    check_formats(model, folder, config)
    return model, processor


@contextmanager
def explained(folder: Path, device: torch.device) -> Iterator[None]:
    """Turn any error of the libraries into one that names the folder and the remedy."""
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
    except Exception as error:  # tokenizers raises bare Exception, transformers passes on any error
        raise WeightsError(
            f"the LLaVA model in {folder} cannot be loaded ({type(error).__name__}: {first_line(error)}); the folder "
            f"needs {', '.join(REQUIRED_FILES)}, all of the same model"
        ) from error


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's random state: transformers draws initial weights even if it then loads others."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def compile_llava(llava: Llava) -> None:
    """Compile the two slow parts."""
    llava.model.requires_grad_(False)
    for part in (llava.model.model.vision_tower, llava.model.model.language_model):
        part.forward = compiled_part(part.forward, llava.device)


def compiled_part(part: Callable[P, T], device: torch.device) -> Callable[P, T]:
    """Return `part` compiled; on a CPU with the weights as constants, packed for its kernels."""
    compiled = torch.compile(part)

    # Torch reads both while it traces a call of a new shape; as an option of torch.compile, `freezing` is ignored.
    # Above the limit, which all models of a process share, torch continues without compiling.
    @wraps(part)
    def forward(*args: P.args, **kwargs: P.kwargs) -> T:
        freezing = device.type == "cpu"
        with inductor_config.patch(freezing=freezing), dynamo_config.patch(recompile_limit=_MOST_SHAPES):
            return compiled(*args, **kwargs)

    return forward


def pick_device(name: str) -> torch.device:
    """Return the device that `name` (auto, cpu, cuda, cuda:N) means on this machine.

    Raises ConfigError if it does not exist.
    """
    return torch.device(resolve_device(name, torch.cuda, "caption.device"))


def quantization_settings(folder: Path, quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the settings of bitsandbytes, which quantize only the layers of the language model.

    None if nothing is to be quantized, or if the folder is already quantized, as its config.json describes.
    """
    if quantization == "none" or stored_quantization(folder) is not None:
        return None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(NOT_QUANTIZED))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def ensure_folder(config: CaptionConfig) -> Path:
    """Return the model's folder; download a hub id that is not in the local cache."""
    folder = folder_of(config)
    return folder if folder is not None else fetch_snapshot(config.model, config.revision)


def checked_form(processor: Any, folder: Path) -> ChatForm:
    """Return how the model is prompted; raise WeightsError if its tokenizer has other special tokens than its files."""
    form = read_chat_form(folder)
    if form is None:
        raise WeightsError(f"{folder} does not contain a LLaVA: copy the whole folder again")
    own = processor.tokenizer.special_tokens_map
    if form.chat_template is not None:
        odd = [name for name in own if name in form.chat_template and form.tokens.get(name) != own[name]]
        if odd:
            raise WeightsError(
                f"the chat template in {folder} uses {', '.join(odd)}, which tokenizer_config.json does not give: copy "
                "the model's own tokenizer_config.json"
            )
    return form


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bars and the load report of transformers; the errors raised here contain all of it."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(max(verbosity, transformers_logging.ERROR))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
