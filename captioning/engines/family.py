"""Families of LLaVA: the views that one sees of a framed image, and the tokens that they become.

LLaVA-1.5 sees one square view. LLaVA-NeXT (1.6) and LLaVA-OneVision see the framed image squeezed into a square, and
then its tiles at full resolution. Their processors choose the grid of tiles by the size of each crop, a wide one for
64 x 128 pixels. Here every crop is framed to one grid that a standing person fills: of the published models, two tiles,
one above the other. The number of tokens is the same for all images, so a batch needs no padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from PIL import Image

from captioning.chat_form import LLAVA, LLAVA_ONEVISION
from data.errors import WeightsError

NOT_QUANTIZED: Final = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
"""Modules of every family that stay in full precision, because they are small or process pixels. Full paths, as
transformers >= 5 requires."""

_WITH_CLASS_TOKEN: Final = frozenset({"clip_vision_model", "dpt"})
_BODY: Final = (1, 2)  # width and height of a standing person
_ENOUGH: Final = 1.1  # up to this factor, LLaVA-OneVision does not shrink the features of its tiles


class Box(NamedTuple):
    """The part of the framed image that a token shows, in its pixels."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a model makes of a framed image.

    side: pixels of the square input of the vision tower. patch: pixels of its patches. size: width and height of the
    framed image. tiled: whether the model sees tiles of it after the whole. class_tokens: tokens of a view that show no
    patch, before the others. dropped: tokens of a view that the model leaves out, from the first on. most_tiles: tiles
    beyond which the features are shrunk.
    """

    model_type: str
    side: int
    patch: int
    size: tuple[int, int]
    tiled: bool = False
    class_tokens: int = 0
    dropped: int = 0
    most_tiles: int | None = None

    @classmethod
    def of(cls, config: Any) -> Family:
        """Return the family of a model by its transformers config."""
        vision = config.vision_config
        side, kind = vision.image_size, config.model_type
        tiled = kind != LLAVA
        shrunk = kind == LLAVA_ONEVISION
        return cls(
            model_type=kind,
            side=side,
            patch=vision.patch_size,
            size=tall_grid(config.image_grid_pinpoints, side) if tiled else (side, side),
            tiled=tiled,
            class_tokens=1 if vision.model_type in _WITH_CLASS_TOKEN else 0,
            dropped=1 if config.vision_feature_select_strategy == "default" else 0,
            most_tiles=int(config.vision_aspect_ratio.removeprefix("anyres_max_")) if shrunk else None,
        )

    @property
    def image_tokens(self) -> int:
        """Number of tokens of one image in the prompt."""
        return len(self.boxes)

    @cached_property
    def boxes(self) -> tuple[Box | None, ...]:
        """What each token of one image shows, in their order; None for a class token or the end of a row of tiles."""
        patches = self.side // self.patch
        whole = [None] * self.class_tokens + [box for row in self._grid(patches, patches) for box in row]
        seen = whole[self.dropped :]
        if self.tiled:
            for row in self._grid(*self._tile_features(patches)):
                seen += [*row, None]
        return tuple(seen)

    def _grid(self, rows: int, columns: int) -> list[list[Box | None]]:
        width, height = self.size[0] / columns, self.size[1] / rows
        return [
            [Box(j * width, i * height, (j + 1) * width, (i + 1) * height) for j in range(columns)] for i in range(rows)
        ]

    def _tile_features(self, patches: int) -> tuple[int, int]:
        """Return rows and columns of the features of all tiles."""
        rows, columns = (length // self.side * patches for length in self.size[::-1])
        if self.most_tiles is not None:
            ratio = math.sqrt(rows * columns / (self.most_tiles * patches**2))
            if ratio > _ENOUGH:
                return int(rows // ratio), int(columns // ratio)
        return rows, columns

    def inputs(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the model's inputs for framed images, normalized by its processor: pixels, and sizes if it has tiles.

        The processor neither crops nor resizes; of a model with tiles, it squeezes the whole image into the first view.
        """
        if not self.tiled:
            made = processor.image_processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")
            return {"pixel_values": made["pixel_values"]}
        square = {"height": self.side, "width": self.side}
        made = processor.image_processor(
            list(images),
            size=square,
            crop_size=square,
            image_grid_pinpoints=[[self.size[1], self.size[0]]],
            return_tensors="pt",
        )
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels of one image."""
        if not self.tiled:
            return (3, self.side, self.side)
        tiles = (self.size[0] // self.side) * (self.size[1] // self.side)
        return (1 + tiles, 3, self.side, self.side)

    def adjust(self, processor: Any, config: Any) -> None:
        """Copy the model's image settings to the processor.

        Old processor files lack these settings, and then prompt and image features differ by one token (575 and 576).
        """
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.tokenizer.padding_side = "left"
        if self.most_tiles is not None:
            processor.num_image_tokens = (self.side // self.patch) ** 2
            processor.vision_aspect_ratio = config.vision_aspect_ratio
            return
        processor.patch_size = self.patch
        processor.num_additional_image_tokens = self.class_tokens


def tall_grid(grids: Sequence[Sequence[int]], side: int) -> tuple[int, int]:
    """Return width and height of the grid of tiles that a standing person fills best, of those that the model knows.

    grids: heights and widths in pixels (image_grid_pinpoints). For equal filling, the grid with the fewest tiles.
    """
    known = [(width, height) for height, width in grids if not width % side and not height % side and width and height]
    if not known:
        raise WeightsError(
            f"image_grid_pinpoints in config.json has no grid of whole tiles of {side} x {side} pixels: copy the "
            "model's own config.json"
        )

    def filled(size: tuple[int, int]) -> float:
        scale = min(size[0] / _BODY[0], size[1] / _BODY[1])
        return scale * scale * _BODY[0] * _BODY[1] / (size[0] * size[1])

    return min(known, key=lambda size: (-filled(size), size[0] * size[1], size))
