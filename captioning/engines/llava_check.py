"""Checks that a loaded LLaVA is the one in its folder, without random or non-finite weights or another number format.

Used by `llava_load` before any image is captioned.
"""

from __future__ import annotations

from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
)

from captioning.chat_form import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
from captioning.config import CaptionConfig, Quantization
from captioning.model_folder import place, stored_quantization
from data.errors import WeightsError, raise_problems
from data.weights import differences, few, model_tensors, nonfinite

_QUANTIZED: Final[dict[str, Quantization]] = {"Linear4bit": "4bit", "Linear8bitLt": "8bit"}
# Tensors that bitsandbytes stores next to a quantized weight.
_STATISTICS: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
_PROCESSORS: Final = {
    LLAVA: LlavaProcessor,
    LLAVA_NEXT: LlavaNextProcessor,
    LLAVA_ONEVISION: LlavaOnevisionProcessor,
}
_STATE: Final = ".quant_state.bitsandbytes__"


def check_tensors(folder: Path) -> None:
    """Raise WeightsError unless `folder` stores exactly the tensors of the model that its config.json describes.

    transformers matches them by all names that it knows, on the meta device: only headers are read, no memory is used,
    and nothing is quantized yet, because bitsandbytes would accept another shape.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if stored_quantization(folder) is not None:
        del config.quantization_config
    model, found = AutoModelForImageTextToText.from_pretrained(
        folder,
        config=config,
        dtype=config.dtype or torch.float32,
        device_map={"": "meta"},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_loading(folder, found)
    if stored_quantization(folder) is None:
        _check_numbers(model, folder)


def _check_numbers(model: nn.Module, folder: Path) -> None:
    """Raise WeightsError if integers are stored in place of floating-point weights; they would be used as they are."""
    floating = {place(name) for name, value in model.state_dict().items() if value.is_floating_point()}
    stored = model_tensors(folder).items()
    integers = [f"{name} ({entry.dtype})" for name, entry in stored if not entry.is_float and place(name) in floating]
    if integers:
        raise WeightsError(
            f"the weights in {folder} store integers in place of {len(integers)} {_tensors(integers)}: "
            f"{few(integers)}. They are quantized, but config.json does not describe how: use the unquantized model"
        )


class LoadingInfo(TypedDict):
    """What transformers reports about the tensors of a loaded model; mismatched: (name, stored shape, model shape)."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: set[tuple[str, torch.Size, torch.Size]]


def check_loading(folder: Path, found: LoadingInfo) -> None:
    """Raise WeightsError if transformers' loading info `found` names a missing, unexpected or misshapen tensor."""
    unexpected = set(found["unexpected_keys"])
    packed = {name for name, _, _ in found["mismatched_keys"] if f"{name}.absmax" in unexpected}  # 4 bits, flattened
    shapes = {name: (have, want) for name, have, want in found["mismatched_keys"] if name not in packed}
    if stored_quantization(folder) is not None:
        unexpected = {name for name in unexpected if not name.endswith(_STATISTICS) and _STATE not in name}
    problems = differences(found["missing_keys"], unexpected, shapes)
    if problems:
        raise WeightsError(
            f"the weights in {folder} do not match the model in its config.json ({'; '.join(problems)})."
            f"{_hint(unexpected)} Download or copy the whole folder again, or save the whole model with transformers"
        )


def _hint(unexpected: set[str]) -> str:
    """Return a sentence about the origin of these tensor names, or an empty text."""
    if any(name.startswith("base_model.") or ".lora_" in name for name in unexpected):
        return " These are names of PEFT: merge the adapter into its base model (`merge_and_unload`) and save that."
    if any("mm_projector" in name for name in unexpected):
        return (
            " These are names of the original LLaVA repository: use a model converted for transformers, such as "
            "llava-hf/llava-1.5-7b-hf, or convert this one."
        )
    return ""


def check_files_finite(folder: Path) -> None:
    """Raise WeightsError if a stored tensor contains NaN or infinity; reads all weights once."""
    bad = nonfinite(model_tensors(folder))
    if bad:
        raise WeightsError(
            f"the weights in {folder} contain NaN or infinity in {len(bad)} {_tensors(bad)}: {few(bad)}. The file is "
            "damaged, or the training diverged: use another checkpoint"
        )


def check_finite(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Raise WeightsError if a tensor of the loaded model is not finite, or a weight is all zeros.

    Includes buffers and the statistics of quantization. An interrupted download leaves zeros in its file.
    """
    bad, zero = _bad_values(model)
    if zero:
        raise WeightsError(
            f"the weights in {folder} are all zeros in {len(zero)} {_tensors(zero)}: {few(zero)}. The download was "
            "probably interrupted: download or copy the file again"
        )
    if not bad:
        return
    check_files_finite(folder)
    raise WeightsError(
        f"{len(bad)} {_tensors(bad)} of the model in {folder}, finite in the file, overflow in {name_of(dtype)}: "
        f"{few(bad)}; {overflow_remedy(name_of(dtype))}"
    )


def overflow_remedy(dtype: str) -> str:
    """Return the remedy if the number format `dtype` overflows."""
    wider = {"float16": "set caption.dtype=bfloat16 or float32", "bfloat16": "set caption.dtype=float32"}
    return wider.get(dtype, "check the settings in config.json, or use another checkpoint")


def _tensors(names: list[str]) -> str:
    return "tensor" if len(names) == 1 else "tensors"


def _bad_values(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of non-finite tensors and of all-zero weights, in one pass over the model."""
    names, extremes = [], []
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            names.append(name)
            extremes.append(torch.stack(tensor.aminmax()).float())  # NaN is passed on
    stacked = torch.stack(extremes)
    finite, zero = stacked.isfinite().all(dim=1).tolist(), (stacked == 0).all(dim=1).tolist()
    return list(compress(names, map(not_, finite))), [name for name in compress(names, zero) if _is_weight(name)]


def _is_weight(name: str) -> bool:
    """Return True if the tensor must not be all zeros; a bias, or a token that training never used, may be."""
    return name.endswith((".weight", ".absmax", ".SCB"))


def check_formats(model: nn.Module, folder: Path, config: CaptionConfig) -> None:
    """Raise WeightsError unless dtype, quantization and quantized shapes of the loaded model match the settings."""
    problems = []
    quantized = [module for module in model.modules() if type(module).__name__ in _QUANTIZED]
    kinds = {_QUANTIZED[type(module).__name__] for module in quantized} or {"none"}
    if kinds != {config.quantization}:
        problems.append(f"quantization is {' and '.join(sorted(kinds))}, caption.quantization {config.quantization}")
    formats = _formats(model, quantized)
    if formats != {config.number_format}:
        problems.append(f"dtype is {' and '.join(sorted(formats))}, caption.dtype {config.number_format}")
    problems += _misshapen(model)
    raise_problems(f"the model in {folder} was not loaded according to the settings", problems, WeightsError)


def _formats(model: nn.Module, quantized: list[nn.Module]) -> set[str]:
    """Return the number formats that the model computes in."""
    packed = {id(module.weight) for module in quantized}
    dtypes: set[Any] = {
        value.dtype for value in model.parameters() if value.is_floating_point() and id(value) not in packed
    }
    dtypes |= {module.compute_dtype for module in quantized if getattr(module, "compute_dtype", None) is not None}
    return {name_of(dtype) for dtype in dtypes}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a number format as the settings write it."""
    return str(dtype).removeprefix("torch.")


def _misshapen(model: nn.Module) -> list[str]:
    """Return the problems with the shapes of quantized weights, which neither library checks."""
    problems = []
    for name, module in model.named_modules():
        if type(module).__name__ not in _QUANTIZED:
            continue
        state = getattr(module.weight, "quant_state", None)
        shape = tuple(module.weight.shape if state is None else state.shape)
        if shape != (module.out_features, module.in_features):
            problems.append(f"{name}.weight is {list(shape)} and should be {[module.out_features, module.in_features]}")
    return problems


def check_processor(model: Any, processor: Any, folder: Path) -> None:
    """Raise WeightsError unless tokenizer and processor fit the model: its image token, its end token, its images."""
    kind = model.config.model_type
    if not isinstance(processor, _PROCESSORS[kind]):
        raise WeightsError(
            f"{folder / 'processor_config.json'} describes a {type(processor).__name__}; expected a "
            f"{_PROCESSORS[kind].__name__} for model_type {kind!r} in config.json"
        )
    raise_problems(f"the tokenizer in {folder} does not fit the model", _token_problems(model, processor), WeightsError)


def _token_problems(model: Any, processor: Any) -> list[str]:
    problems = []
    rows = model.get_input_embeddings().num_embeddings
    image_token, tokenizer = model.config.image_token_id, processor.tokenizer
    ids = tokenizer(processor.image_token, add_special_tokens=False).input_ids
    if ids != [image_token]:
        problems.append(
            f"{processor.image_token} is token {', '.join(map(str, ids))} in tokenizer.json, but {image_token} in "
            "config.json (image_token_index)"
        )
    if not 0 <= image_token < rows:
        problems.append(
            f"image_token_index is {image_token} in config.json, but the weights embed {rows} tokens (0 to {rows - 1})"
        )
    return problems + _end_problems(end_tokens(model, tokenizer), rows)


def _end_problems(ends: list[int], rows: int) -> list[str]:
    if not ends:
        return ["no end token: set eos_token_id in generation_config.json"]
    odd = [end for end in ends if not isinstance(end, int) or isinstance(end, bool)]
    if odd:
        return [f"eos_token_id must be a token id or a list of them, not {odd[0]!r}"]
    beyond = [end for end in ends if not 0 <= end < rows]
    if beyond:
        return [f"the end token {beyond[0]} is beyond the {rows} tokens of the weights: correct eos_token_id"]
    return []


def token_ids_only(stored: GenerationConfig) -> GenerationConfig:
    """Return only the ids of the start, end and padding tokens of generation settings.

    `generate` takes everything that its caller leaves open from the model's own settings: penalties, suppressed words,
    time limits.
    """
    return GenerationConfig(
        bos_token_id=stored.bos_token_id, eos_token_id=stored.eos_token_id, pad_token_id=stored.pad_token_id
    )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the end tokens of a model, which may have several, otherwise that of its tokenizer."""
    own = model.generation_config.eos_token_id
    end = own if own is not None else tokenizer.eos_token_id
    if end is None:
        return []
    return list(end) if isinstance(end, list | tuple) else [end]
