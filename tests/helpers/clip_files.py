"""CLIP files for tests: writers of files and configs in each naming, and the features of a backbone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from reid.config.backbone import BackboneConfig
from reid.models.backbone import Backbone
from reid.models.pretrained import TINY_FOLDER

TEXTS = ["A woman in a red coat.", "a man", "an elderly man with a backpack and blue jeans"]
POSITIONS = "visual.positional_embedding"
SCALARS = {"input_resolution": 128, "context_length": 77, "vocab_size": 700}


def random_images(height: int = 128, width: int = 64) -> Tensor:
    """Return two random images [2, 3, height, width], always the same."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def features_of(backbone: Backbone, height: int = 128, width: int = 64) -> tuple[Tensor, Tensor]:
    """Return the image tokens of `random_images` and the text features of `TEXTS`."""
    with torch.no_grad():
        return backbone.eval().image(random_images(height, width)).tokens_BLD, backbone.text(TEXTS)


def assert_features(backbone: Backbone, expected: tuple[Tensor, Tensor], **how: Any) -> None:
    """Fail unless `backbone` has the features `expected`; `how` goes to `assert_close`."""
    for got, want in zip(features_of(backbone), expected, strict=True):
        torch.testing.assert_close(got, want, **how)


def with_prefix(prefix: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return a function that puts `prefix` before every name of a state."""
    return lambda state: {prefix + name: value.clone() for name, value in state.items()}


def own_file(
    folder: Path, state: Mapping[str, Tensor], name: str = "mine.safetensors", **settings: Any
) -> BackboneConfig:
    """Write `state` to a file in `folder` and return the config of a backbone with these weights."""
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return BackboneConfig(weights=str(path), **settings)


def write_hugging_face(folder: Path, activation: str, size: tuple[int, int] = (128, 128), **changes: Any) -> CLIPModel:
    """Write a random CLIPModel of the tiny shape and return it."""
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 3}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 700, "eos_token_id": 699, "bos_token_id": 698, "hidden_act": activation},
        vision_config={**vision, "patch_size": 16, "image_size": size[0], "hidden_act": activation, **changes},
        projection_dim=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # they start at 1 and 0, which would hide a mix-up
                parameter.data += 0.2 * torch.randn_like(parameter)
            elif "fc1" in name:
                parameter.data *= 20  # otherwise the activations differ too little
    model.save_pretrained(folder)
    return model


def write_open_clip(folder: Path, image_size: tuple[int, int] = (128, 64), **changes: Any) -> None:
    """Write the open_clip config of the tiny CLIP, with `changes` of its model, into `folder`."""
    shape = json.loads((TINY_FOLDER / "config.json").read_text())["clip"]
    shape["vision_cfg"]["image_size"] = image_size
    content = {"model_cfg": {**shape, **changes}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
