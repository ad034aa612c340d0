"""Framing: fits the crop of a person to the square input of a LLaVA without losing head or feet.

The stock processor of LLaVA-1.5 resizes the short side and crops the center: a 64 x 128 crop loses half of its rows,
and with them hair, glasses and shoes, which the template asks for. Framing keeps the whole body. Its result has the
model's input size, so the processor neither resizes nor crops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image

from captioning.config import Framing

FRAMING_VERSION: Final = 1
"""Raise it whenever the pixels of a framing change; part of the captioner fingerprint."""


def frame(image: Image.Image, framing: Framing, side: int, mean: Sequence[float]) -> Image.Image:
    """Return `image` (RGB, any size) as a square of `side` x `side` pixels.

    mean: the processor's mean color as fractions, used for padding; the normalized padding is 0.
    """
    if framing == "stretch":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    if framing == "center_crop":
        return _center_crop(image).resize((side, side), Image.Resampling.BICUBIC)
    width, height = image.size
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    inner = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), pad_color(mean))
    square.paste(inner, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def pad_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the mean color in 0..255."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def _center_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return image.crop((left, top, left + short, top + short))
