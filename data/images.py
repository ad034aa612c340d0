"""Decoding of image files that people hand in: any common kind, any mode, never a surprise.

One decoder for indexing, captioning and training, so that an image which the index accepted decodes the same way
everywhere: upright (EXIF), 8-bit RGB, transparent parts on white.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import RejectedRow
from data.files import inside
from data.fingerprint import digest_bytes

MAX_PIXELS: Final = 64_000_000
"""Default cap on width x height: a crop of a person has thousands of pixels, a decompression bomb has billions."""

# The kinds a data set of photographs comes in. Fixed, so that no rarely used parser is ever reached.
_FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# What Pillow raises for a file that begins as an image and then breaks off or contradicts itself.
_BROKEN: Final = (OSError, SyntaxError, ValueError, IndexError, KeyError, EOFError, struct.error, zlib.error)


def open_rgb(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in `source` (a path or a file's bytes), upright and in 8-bit RGB; of several frames the first.

    Raises RejectedRow with the reason ``missing``, ``unreadable`` (no permission, a folder), ``empty_file``,
    ``not_an_image``, ``truncated`` or ``too_large`` (more than `max_pixels`, found before anything is decoded).
    """
    content = source if isinstance(source, bytes) else read_bytes(source)
    if not content:
        raise RejectedRow("empty_file")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise RejectedRow("too_large") from error
    except UnidentifiedImageError as error:
        raise RejectedRow("not_an_image") from error
    except _BROKEN as error:
        raise RejectedRow("truncated") from error
    if image.width * image.height > max_pixels:
        raise RejectedRow("too_large")
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise RejectedRow("truncated") from error


def open_indexed(root: Path, path: str, sha256: str | None) -> Image.Image:
    """Return the image at `path`, relative to `root`, as `open_rgb` does, if its bytes still have the digest `sha256`.

    The digest is taken of the very bytes that are decoded. Raises RejectedRow with the reason ``changed``, or one of
    those of `open_rgb` and of `data.files.inside`.
    """
    content = read_bytes(inside(root, path))
    if digest_bytes(content) != sha256:
        raise RejectedRow("changed")
    return open_rgb(content)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of the file at `path`, or reject it as ``missing`` or ``unreadable``."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RejectedRow("missing") from error
    except OSError as error:
        raise RejectedRow("unreadable") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips 16-bit values at 255, which turns nearly every such image white.
    values = np.asarray(image).astype(np.float64)
    highest = float(values.max(initial=0.0))
    if image.mode == "F":
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if image.mode.startswith("I;16") or highest > 255.0 else 1.0
    gray = np.nan_to_num(values * scale).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")
