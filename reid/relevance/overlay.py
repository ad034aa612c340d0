"""Pictures of maps: an image in gray, with the patches above an even share in color.

Colors compare patches of one map. A patch at or below an even share (1 / number of patches) is gray; the color is full
at the map's highest patch, or at `FULL` even shares if no patch reaches that, so that an even map stays pale.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reid.relevance.grid import PatchGrid

FULL: Final = 3.0
_GRAY: Final = 0.72
_RAMP: Final = np.array([[255, 214, 64], [255, 128, 16], [214, 20, 40]], dtype=np.float64)
_OPACITY: Final = 0.82

Floats = NDArray[np.floating[Any]]


def peak(map_RC: Floats) -> float:
    """Return the highest value of a map in even shares: 1 for an even map, 0 for an empty one."""
    return float(map_RC.max() * map_RC.size)


def strength(map_RC: Floats, grid: PatchGrid, height: int, width: int) -> Floats:
    """Return the strength of the color, 0 to 1, at `height` x `width` pixels."""
    shares = grid.spread(map_RC * map_RC.size, height, width)
    return ((shares - 1) / (max(peak(map_RC), FULL) - 1)).clip(0, 1)


def overlay(image: Image.Image, map_RC: Floats, grid: PatchGrid) -> Image.Image:
    """Return the image in gray with its map in color, at its own size.

    image: RGB, the whole image that was encoded, of any size.
    """
    strength_HW1 = strength(map_RC, grid, image.height, image.width)[..., None]
    gray_HW1 = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * _GRAY + 255 * (1 - _GRAY) * 0.5
    places = np.linspace(0, 1, len(_RAMP))
    color_HW3 = np.stack([np.interp(strength_HW1[..., 0], places, channel) for channel in _RAMP.T], axis=-1)
    opacity_HW1 = _OPACITY * np.sqrt(strength_HW1)
    blended_HW3 = gray_HW1 * (1 - opacity_HW1) + color_HW3 * opacity_HW1
    return Image.fromarray(blended_HW3.round().clip(0, 255).astype(np.uint8))
