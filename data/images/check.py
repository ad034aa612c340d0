"""The check of an image file's bytes, by which the index decides whether it is usable."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from PIL import __version__ as pillow_version

from data.errors import RejectedRow
from data.images.decode import open_rgb
from data.images.formats import decoders

CHECK_VERSION: Final = 3
"""Version of the decoder; increment it when `data.images.decode.open_rgb` accepts or rejects other files."""
_FLAT_LEVELS: Final = 2  # of 255; largest range of each channel in an image of one color


class Decoding(NamedTuple):
    """Result of decoding one file.

    width, height: pixels after rotation. reason: why the file is unusable, or "". flat: it is of one color.
    """

    width: int
    height: int
    reason: str
    flat: int  # 1 or 0, as stored in SQLite


def check(content: bytes, max_pixels: int) -> Decoding:
    """Decode the bytes of a file."""
    try:
        image = open_rgb(content, max_pixels)
    except RejectedRow as error:
        return Decoding(0, 0, error.reason, 0)
    spans = np.ptp(np.array(image.getextrema()), axis=1)
    return Decoding(*image.size, "", int(spans.max() <= _FLAT_LEVELS))


def checker_of(max_pixels: int) -> str:
    """Return what decodes the files: another version of Pillow, or a plugin, may accept others."""
    return f"{CHECK_VERSION} {pillow_version} {max_pixels} {decoders()}"
