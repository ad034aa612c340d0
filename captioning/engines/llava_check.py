"""Checks that a loaded LLaVA is the one in its folder: nothing random, nothing infinite, nothing of another format.

Used by `llava_load`, before anything is captioned.
"""

from __future__ import annotations

from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from captioning.config import CaptionConfig, Quantization
from captioning.model_folder import place, stored_quantization
from data.errors import WeightsError, raise_problems
from data.weights import differences, few, model_tensors, nonfinite

_QUANTIZED: Final[dict[str, Quantization]] = {"Linear4bit": "4bit", "Linear8bitLt": "8bit"}
# What bitsandbytes stores beside a quantized weight.
_STATISTICS: Final = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
_STATE: Final = ".quant_state.bitsandbytes__"


def check_tensors(folder: Path) -> None:
    """Raise WeightsError unless `folder` stores exactly the tensors of the model that its config.json describes.

    transformers itself matches them, by all the names it knows, on the meta device: only headers are read, nothing
    takes memory, and nothing is quantized yet, since bitsandbytes would accept another shape.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if stored_quantization(folder) is not None:
        del config.quantization_config
    model, found = LlavaForConditionalGeneration.from_pretrained(
        folder,
        config=config,
        dtype=config.dtype or torch.float32,
        device_map={"": "meta"},
        use_safetensors=True,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_loading(folder, found)
    if stored_quantization(folder) is None:
        _check_numbers(model, folder)


def _check_numbers(model: nn.Module, folder: Path) -> None:
    """Raise WeightsError if integers are stored where the model computes: they would be taken as they are."""
    floating = {place(name) for name, value in model.state_dict().items() if value.is_floating_point()}
    stored = model_tensors(folder).items()
    integers = [f"{name} ({entry.dtype})" for name, entry in stored if not entry.is_float and place(name) in floating]
    if integers:
        raise WeightsError(
            f"the weights in {folder} store integers in place of {len(integers)} {_tensors(integers)}: "
            f"{few(integers)}. They are quantized, and config.json does not say how: use the unquantized model"
        )


def check_loading(folder: Path, found: dict[str, Any]) -> None:
    """Raise WeightsError if transformers' loading info `found` names a tensor that did not go where it belongs."""
    unexpected = set(found["unexpected_keys"])
    packed = {name for name, _, _ in found["mismatched_keys"] if f"{name}.absmax" in unexpected}  # 4 bits, flattened
    shapes = {name: (have, want) for name, have, want in found["mismatched_keys"] if name not in packed}
    if stored_quantization(folder) is not None:
        unexpected = {name for name in unexpected if not name.endswith(_STATISTICS) and _STATE not in name}
    problems = differences(found["missing_keys"], unexpected, shapes)
    if problems:
        raise WeightsError(
            f"the weights in {folder} are not those of the model in its config.json ({'; '.join(problems)})."
            f"{_hint(unexpected)} Download or copy the whole folder again, or save the whole model with transformers"
        )


def _hint(unexpected: set[str]) -> str:
    """Return a sentence on where tensors of such names come from, or nothing."""
    if any(name.startswith("base_model.") or ".lora_" in name for name in unexpected):
        return " These are names of PEFT: merge the adapter into its base model (`merge_and_unload`) and save that."
    if any("mm_projector" in name for name in unexpected):
        return (
            " These are names of the original LLaVA repository: use a model converted for transformers, such as "
            "llava-hf/llava-1.5-7b-hf, or convert this one."
        )
    return ""


def check_files_finite(folder: Path) -> None:
    """Raise WeightsError if a stored tensor holds a NaN or an infinity; reads all of the weights once."""
    bad = nonfinite(model_tensors(folder))
    if bad:
        raise WeightsError(
            f"the weights in {folder} hold NaN or infinity in {len(bad)} {_tensors(bad)}: {few(bad)}. The file is "
            "damaged, or its training diverged: use another checkpoint"
        )


def check_finite(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Raise WeightsError if a tensor of the loaded model is not finite, or a weight is nothing but zeros.

    Buffers and the statistics of quantization included. Zeros are what an interrupted download leaves in its file.
    """
    bad, zero = _bad_values(model)
    if zero:
        raise WeightsError(
            f"the weights in {folder} hold nothing but zeros in {len(zero)} {_tensors(zero)}: {few(zero)}. The file is "
            "probably of an interrupted download: download or copy it again"
        )
    if not bad:
        return
    check_files_finite(folder)
    raise WeightsError(
        f"{len(bad)} {_tensors(bad)} of the model in {folder}, finite in the file, do not fit into {name_of(dtype)} "
        f"and become infinite: {few(bad)}; {overflow_remedy(name_of(dtype))}"
    )


def overflow_remedy(dtype: str) -> str:
    """Return what to do where the number format `dtype` overflows."""
    wider = {"float16": "set caption.dtype=bfloat16 or float32", "bfloat16": "set caption.dtype=float32"}
    return wider.get(dtype, "check the settings in config.json, or use another checkpoint")


def _tensors(names: list[str]) -> str:
    return "tensor" if len(names) == 1 else "tensors"


def _bad_values(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of tensors that are not finite, and of weights that are all zero: one pass over the model."""
    names, extremes = [], []
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            names.append(name)
            extremes.append(torch.stack(tensor.aminmax()).float())  # NaN goes through
    stacked = torch.stack(extremes)
    finite, zero = stacked.isfinite().all(dim=1).tolist(), (stacked == 0).all(dim=1).tolist()
    return list(compress(names, map(not_, finite))), [name for name in compress(names, zero) if _is_weight(name)]


def _is_weight(name: str) -> bool:
    """Return True unless zeros are nothing unusual in the tensor, as in a bias or a token that training never used."""
    return name.endswith((".weight", ".absmax", ".SCB"))


def check_formats(model: nn.Module, folder: Path, config: CaptionConfig) -> None:
    """Raise WeightsError unless dtype, quantization and quantized shapes of the loaded model are what is recorded."""
    problems = []
    quantized = [module for module in model.modules() if type(module).__name__ in _QUANTIZED]
    kinds = {_QUANTIZED[type(module).__name__] for module in quantized} or {"none"}
    if kinds != {config.quantization}:
        problems.append(f"quantization is {' and '.join(sorted(kinds))}, caption.quantization {config.quantization}")
    formats = _formats(model, quantized)
    if formats != {config.number_format}:
        problems.append(f"dtype is {' and '.join(sorted(formats))}, caption.dtype {config.number_format}")
    problems += _misshapen(model)
    raise_problems(f"the model in {folder} was not loaded as the settings say", problems, WeightsError)


def _formats(model: nn.Module, quantized: list[nn.Module]) -> set[str]:
    """Return the number formats that the model computes in."""
    packed = {id(module.weight) for module in quantized}
    dtypes: set[Any] = {
        value.dtype for value in model.parameters() if value.is_floating_point() and id(value) not in packed
    }
    dtypes |= {module.compute_dtype for module in quantized if getattr(module, "compute_dtype", None) is not None}
    return {name_of(dtype) for dtype in dtypes}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a number format as the settings have it."""
    return str(dtype).removeprefix("torch.")


def _misshapen(model: nn.Module) -> list[str]:
    """Return what is wrong with the shapes of quantized weights, which neither library compares."""
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
    if not isinstance(processor, LlavaProcessor):
        raise WeightsError(
            f"{folder / 'processor_config.json'} makes a {type(processor).__name__}; wanted is a LlavaProcessor"
        )
    raise_problems(f"the tokenizer in {folder} does not fit the model", _token_problems(model, processor), WeightsError)


def _token_problems(model: Any, processor: Any) -> list[str]:
    problems = []
    rows = model.get_input_embeddings().num_embeddings
    wanted, tokenizer = model.config.image_token_id, processor.tokenizer
    ids = tokenizer(processor.image_token, add_special_tokens=False).input_ids
    if ids != [wanted]:
        problems.append(
            f"{processor.image_token} is token {', '.join(map(str, ids))} in tokenizer.json, and {wanted} in "
            "config.json (image_token_index)"
        )
    if not 0 <= wanted < rows:
        problems.append(
            f"image_token_index is {wanted} in config.json, and the weights embed {rows} tokens (0 to {rows - 1})"
        )
    return problems + _end_problems(end_tokens(model, tokenizer), rows)


def _end_problems(ends: list[int], rows: int) -> list[str]:
    if not ends:
        return ["no end token: give eos_token_id in generation_config.json"]
    odd = [end for end in ends if not isinstance(end, int) or isinstance(end, bool)]
    if odd:
        return [f"eos_token_id must be a token's number, or a list of them, not {odd[0]!r}: correct it"]
    beyond = [end for end in ends if not 0 <= end < rows]
    if beyond:
        return [f"the end token {beyond[0]} is beyond the {rows} tokens of the weights: correct eos_token_id"]
    return []


def token_ids_only(stored: GenerationConfig) -> GenerationConfig:
    """Return the settings of generation without all but the ids of the start, end and padding tokens.

    `generate` takes from a model's own settings what its caller leaves open: penalties, suppressed words, time limits.
    """
    return GenerationConfig(
        bos_token_id=stored.bos_token_id, eos_token_id=stored.eos_token_id, pad_token_id=stored.pad_token_id
    )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the end tokens of a model, which may have several, or else its tokenizer's."""
    own = model.generation_config.eos_token_id
    end = own if own is not None else tokenizer.eos_token_id
    if end is None:
        return []
    return list(end) if isinstance(end, list | tuple) else [end]
