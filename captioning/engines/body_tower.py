"""The vision tower without the padding, for `caption.image_tokens=body_only`.

The tower gets the smallest rectangle of whole patches around the body, with the position embeddings of these patches.
Each patch attends to all others, so every feature differs from its value in the whole square.

Shape legend: B batch, P image tokens of a rectangle, D width of the tower.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from captioning.engines.image_tokens import PatchGrid
from captioning.framing import Box, body_of
from data.errors import ConfigError

Encode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _encode_clip(tower: Any, depth: int, pixels_B3HW: torch.Tensor, places_P: torch.Tensor) -> torch.Tensor:
    embeddings = tower.embeddings
    patches_BPD = embeddings.patch_embedding(pixels_B3HW).flatten(2).transpose(1, 2)
    class_B1D = embeddings.class_embedding.expand(len(pixels_B3HW), 1, -1)
    hidden_BPD = torch.cat([class_B1D, patches_BPD], dim=1) + embeddings.position_embedding(places_P)
    hidden_BPD = tower.pre_layrnorm(hidden_BPD)
    for layer in tower.encoder.layers[:depth]:
        hidden_BPD = layer(hidden_BPD, None)
    return hidden_BPD


def _encode_hybrid(tower: Any, depth: int, pixels_B3HW: torch.Tensor, places_P: torch.Tensor) -> torch.Tensor:
    embeddings = tower.embeddings
    maps = embeddings.projection(embeddings.backbone(pixels_B3HW).feature_maps[-1])
    class_B1D = embeddings.cls_token.expand(len(pixels_B3HW), -1, -1)
    hidden_BPD = torch.cat([class_B1D, maps.flatten(2).transpose(1, 2)], dim=1)
    hidden_BPD = hidden_BPD + embeddings.position_embeddings[:, places_P]
    for layer in tower.encoder.layer[:depth]:
        hidden_BPD = layer(hidden_BPD)
    return hidden_BPD


_ENCODERS: Final[Mapping[str, Callable[[Any, int, torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "clip_vision_model": _encode_clip,
    "dpt": _encode_hybrid,
}
"""Kind of the tower -> encoder of rectangles: the class token, then the patches [B, 1 + P, D]."""


class BodyTower:
    """The vision tower of a LLaVA, for rectangles of its patches."""

    def __init__(self, model: Any, grid: PatchGrid) -> None:
        """Raise ConfigError for a tower that only takes whole squares."""
        vision, layer = model.config.vision_config, model.config.vision_feature_layer
        usable = vision.model_type == "clip_vision_model" or (vision.model_type == "dpt" and vision.is_hybrid)
        if not usable or not isinstance(layer, int):
            raise ConfigError(
                f"caption.image_tokens=body_only needs a CLIP vision tower and one feature layer, and this model has "
                f"{vision.model_type} and vision_feature_layer={layer}: set caption.image_tokens=body"
            )
        self._model = model
        self._grid = grid
        encoder, tower = _ENCODERS[vision.model_type], model.model.vision_tower
        depth = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer

        def encode(pixels_B3HW: torch.Tensor, places_P: torch.Tensor) -> torch.Tensor:
            return encoder(tower, depth, pixels_B3HW, places_P)

        self._encode: Encode = encode

    def compile(self, compiled: Callable[[Encode], Encode]) -> None:
        """Replace the encoder by what `compiled` makes of it."""
        self._encode = compiled(self._encode)

    def features(self, images: Sequence[Image.Image], pixels_B3HW: torch.Tensor, *, fixed: bool) -> torch.Tensor:
        """Return the features of framed images, as `image_features` does; those of patches in the padding mean nothing.

        fixed: encode groups of 1, 2, 4, 8, ... images, for compiled code.
        """
        windows = [self._grid.window(body_of(image)) for image in images]
        tokens = len(self._grid.inside(windows[0]))
        out_BPD = pixels_B3HW.new_zeros(len(images), tokens, self._model.config.vision_config.hidden_size)
        for window in dict.fromkeys(windows):
            rows = [i for i, other in enumerate(windows) if other == window]
            kept_P = torch.from_numpy(np.flatnonzero(self._grid.inside(window))).to(pixels_B3HW.device)
            hidden_BPD = self._of_window(pixels_B3HW[_filled(rows) if fixed else rows], window)
            rows_R1 = torch.tensor(rows, device=pixels_B3HW.device)[:, None]
            out_BPD[rows_R1, kept_P] = hidden_BPD[: len(rows), -len(kept_P) :]
        features: torch.Tensor = self._model.model.multi_modal_projector(out_BPD).flatten(0, 1)
        return features

    def _of_window(self, pixels_B3HW: torch.Tensor, window: Box) -> torch.Tensor:
        left, top, right, bottom = (self._grid.patch * edge for edge in window)
        part_B3HW = pixels_B3HW[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
        per_side = self._grid.per_side
        places = 1 + np.arange(per_side**2).reshape(per_side, per_side)
        inside = places[window.top : window.bottom, window.left : window.right]
        places_P = torch.from_numpy(np.concatenate([[0], inside.ravel()])).to(pixels_B3HW.device)
        return self._encode(part_B3HW, places_P)


def _filled(rows: list[int]) -> list[int]:
    """Repeat the last row until the length is a power of two."""
    return rows + rows[-1:] * ((1 << (len(rows) - 1).bit_length()) - len(rows))
