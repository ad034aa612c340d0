"""Framing: fits the crop of a person to the input of a LLaVA without losing head or feet.

The stock processor of LLaVA-1.5 resizes the short side and crops the center: a 64 x 128 crop loses half of its rows,
and with them hair, glasses and shoes, which the template asks for. Framing keeps the whole body. Its result has the
model's input size, so the processor neither resizes nor crops it: a square, or the tall grid of a model with tiles
(`captioning.engines.family`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from PIL import Image

from captioning.config import Framing

FRAMING_VERSION: Final = 1
"""Raise it whenever the pixels of a framing change; part of the captioner fingerprint."""

_BODY: Final = "body"


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


def frame(image: Image.Image, framing: Framing, size: tuple[int, int], mean: Sequence[float]) -> Image.Image:
    """Return `image` (RGB, any size) in `size`, the width and height of the model's input in pixels.

    mean: the processor's mean color as fractions, used for padding; the normalized padding is 0. `body_of`
    tells the padding from the crop.
    """
    if framing == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if framing == "center_crop":
        return _center_crop(image, size).resize(size, Image.Resampling.BICUBIC)
    scale = min(size[0] / image.width, size[1] / image.height)
    inside = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    inner = image if inside == image.size else image.resize(inside, Image.Resampling.BICUBIC)
    framed = Image.new("RGB", size, pad_color(mean))
    left, top = (size[0] - inside[0]) // 2, (size[1] - inside[1]) // 2
    framed.paste(inner, (left, top))
    framed.info[_BODY] = Box(left, top, left + inside[0], top + inside[1])
    return framed


def body_of(framed: Image.Image) -> Box:
    """Return the part of a framed image that shows the crop; the rest is padding."""
    box: Box = framed.info.get(_BODY, Box(0, 0, *framed.size))
    return box


def pad_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the mean color in 0..255."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def _center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the largest part in the center that has the shape of `size`."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
