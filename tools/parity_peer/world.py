"""Small CLIPs, images and labels on which the public CLIP-ReID and this project must compute the same numbers.

Everything is drawn by name from raw PCG64 bits, whose stream NumPy guarantees, so that tools/parity_peer (the public
code) and tests/reid/test_parity.py (this project) use the same weights without a weights file.

Shapes: B images, C identities, K cameras.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor

SEED = 20_221_121
HEIGHT, WIDTH = 256, 128
IDENTITIES, CAMERAS, WORDS = 6, 3, 4
LABELS = [0, 0, 2, 2, 3, 3, 5, 5]
CAMERA_NUMBERS = [0, 1, 2, 0, 1, 2, 0, 1]
PROMPT_LABELS = [0, 0, 0, 2, 3, 3, 5, 1]
"""Identities of the same images in the first stage, whose batches are drawn regardless of identity."""
RERANK = {"k1": 50, "k2": 15, "weight": 0.3}

# The public code fixes 12 vision blocks, 512 text channels and the vocabulary; the rest may be small.
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 2}
_SHAPES: dict[str, dict[str, Any]] = {
    "vit_b16": {"image_size": 224, "layers": 12, "width": 128, "patch_size": 16},
    "rn50": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: its backbone, the step between patches (pixels) and the coefficient of the camera embedding."""

    backbone: str = "vit_b16"
    stride: int = 16
    sie: float = 0.0

    @property
    def shape(self) -> dict[str, Any]:
        """The shape of the small CLIP in open_clip's format."""
        return {"embed_dim": 96, "quick_gelu": True, "vision_cfg": _SHAPES[self.backbone], "text_cfg": _TEXT}

    @property
    def width(self) -> int:
        """Channels of the last feature before the projection."""
        width = self.shape["vision_cfg"]["width"]
        return 32 * width if self.backbone == "rn50" else width


CASES = {
    "vit": Case(),
    "vit_sie": Case(sie=3.0),
    "vit_olp": Case(stride=12),
    "vit_sie_olp": Case(stride=12, sie=1.0),
    "rn50": Case(backbone="rn50"),
}


def uniform(name: str, *shape: int) -> Tensor:
    """Return float32 numbers of mean 0 and deviation 1; the same name always gives the same numbers."""
    count = math.prod(shape)
    bits = np.random.PCG64([SEED, zlib.crc32(name.encode())]).random_raw(count // 2 + 1).view(np.uint32)[:count]
    unit = (bits >> 8).astype(np.float32) * np.float32(2**-23) - 1
    return torch.from_numpy((unit * np.float32(math.sqrt(3))).reshape(shape))


def weight(name: str, *shape: int) -> Tensor:
    """Return a weight at a scale that preserves the size of activations, so that every part matters."""
    x = uniform(name, *shape)
    if name.endswith("running_var"):
        return (0.2 * x).exp()
    if len(shape) == 1:
        return 1 + 0.2 * x if name.endswith("weight") else 0.2 * x
    if "embed" in name or name in {"words", "cameras"}:
        return 0.3 * x
    fan_in = shape[0] if name.endswith("proj") else math.prod(shape[1:])
    return x / math.sqrt(fan_in) if shape else 0.2 * x


def clip_state(case: Case) -> dict[str, Tensor]:
    """Return the weights of the small CLIP with OpenAI's names; like OpenAI's, its positions are for square images."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in CLIP(**case.shape).state_dict().items()}
    return {
        name: torch.zeros((), dtype=torch.long) if name.endswith("num_batches_tracked") else weight(name, *shape)
        for name, shape in shapes.items()
    }


def head_state(case: Case, part: str) -> dict[str, Tensor]:
    """Return a BN neck and its classifier; `part` is "last" or "joint"."""
    width = case.width if part == "last" else case.shape["embed_dim"]
    neck = {name: weight(f"{part}.{name}", width) for name in ("weight", "bias", "running_mean", "running_var")}
    return {
        **{f"neck.{name}": value for name, value in neck.items()},
        "neck.num_batches_tracked": torch.zeros((), dtype=torch.long),
        "classifier.weight": weight(f"{part}.classifier", IDENTITIES, width),
    }


def words() -> Tensor:
    """Return the learned words of all identities, [C, 4, 512]."""
    return weight("words", IDENTITIES, WORDS, _TEXT["width"])


def camera_shift(case: Case) -> Tensor:
    """Return the camera embeddings, [K, width]."""
    return weight("cameras", CAMERAS, case.width)


def images() -> Tensor:
    """Return normalized images [B, 3, 256, 128] that differ in coarse colors, not only in noise."""
    coarse = uniform("coarse", len(LABELS), 3, 8, 4).repeat_interleave(32, 2).repeat_interleave(32, 3)
    return 0.4 * coarse + 0.2 * uniform("fine", len(LABELS), 3, HEIGHT, WIDTH)


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Features and labels to rank: queries first."""

    features: Tensor
    pids: np.ndarray
    camids: np.ndarray
    queries: int


def gallery() -> Gallery:
    """Return 40 queries and 200 gallery images of 25 people; three queries have no image from another camera."""
    queries, total, people = 40, 240, 25
    pids = np.concatenate([np.arange(queries), np.arange(total - queries)]) % people
    camids = (uniform("camera", total).numpy() > 0.3).astype(np.int64) + (uniform("third", total).numpy() > 0.9)
    pids[:2] = people + np.arange(2)  # not in the gallery
    unmatched = pids == people - 1
    camids[unmatched] = 1  # in the gallery, but only from the query's camera
    features = uniform("people", people + 2, 32)[torch.from_numpy(pids)] + 1.8 * uniform("images", total, 32)
    return Gallery(features=features, pids=pids, camids=camids, queries=queries)


def describe(x: Tensor) -> dict[str, Any]:
    """Return what a golden file keeps of a tensor: shape, norm, a checksum of all positions, and 16 values."""
    flat = x.detach().double().flatten()
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    chosen = torch.linspace(0, len(flat) - 1, min(16, len(flat))).round().long()
    return {
        "shape": list(x.shape),
        "norm": rounded(flat.norm()),
        "wave": rounded(flat @ wave),
        "values": [rounded(value) for value in flat[chosen]],
    }


def rounded(x: Tensor | float) -> float:
    """Return a number rounded to eight significant digits."""
    return float(f"{float(x):.8g}")
