"""How a crop of a person becomes the square a LLaVA sees, without losing head or feet.

The stock processor of LLaVA-1.5 resizes the short side and cuts a square out of the middle: of a 64 x 128 crop half
the rows are lost, and with them hair, glasses and shoes, which the template then asks for. Here the whole body is kept.
The result already has the model's size, so the processor has nothing left to resize or to cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image

from captioning.config import Framing

FRAMING_VERSION: Final = 1
"""Raised whenever the pixels of a framing change; part of the captioner fingerprint."""


def frame(image: Image.Image, framing: Framing, side: int, mean: Sequence[float]) -> Image.Image:
    """Return `image` (RGB, any size) as a square of `side` x `side` pixels.

    mean: the processor's mean colour as fractions, which pads; after normalisation padding is 0.
    """
    if framing == "stretch":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    if framing == "center_crop":
        return _center_crop(image).resize((side, side), Image.Resampling.BICUBIC)
    width, height = image.size
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    inner = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), pad_colour(mean))
    square.paste(inner, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def pad_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the mean colour in 0..255."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def _center_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image.crop((left, top, left + short, top + short))
