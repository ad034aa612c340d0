"""Decoding of image files of any common format and mode.

Indexing, captioning and training share this decoder, so that an image accepted by the index decodes the same way
everywhere: upright, 8-bit RGB, transparent parts on white. Metadata cannot make an image unusable, because the decoder
does not see it (`data.images.metadata`).
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from data.artifacts.fingerprint import digest_bytes
from data.errors import DataError, RejectedRow
from data.files import inside
from data.images.boxes import heif_without_metadata, jp2_size, jp2_without_metadata
from data.images.formats import READABLE, UNREADABLE, ModernFormat, can_decode, modern_format
from data.images.metadata import UPRIGHT, Bare, orientation_of, without_metadata
from data.sources import remote, shards
from data.sources.address import is_remote

MAX_PIXELS: Final = 64_000_000
"""Default cap on width x height: a crop of a person has thousands of pixels, a decompression bomb has billions."""
MOST_PIXELS: Final = 178_956_970
"""Pillow's own limit, above which it refuses to open a file."""

REASONS: Final = {
    "missing": "the file does not exist",
    "unreadable": "cannot be read: no permission, or not a regular file",
    "empty_file": "the file is empty",
    "not_an_image": "not an image in a supported format",
    "truncated": "the file is truncated or damaged",
    "too_large": "more pixels or bytes than allowed",
    "blank": "every pixel is transparent",
    "out_of_memory": "not enough memory to decode it",
    "changed": "the file has changed since it was indexed",
    "outside_root": "the path leaves the dataset's folder",
    "heic_unreadable": "a HEIC image, which this installation cannot decode: install the extra heif (pip install"
    f" 'clip-scgi[heif]'), or convert it to {READABLE}",
    "avif_unreadable": "an AVIF image, which this build of Pillow cannot decode: install a Pillow with AVIF, or convert"
    " the image to JPEG or PNG",
    "jp2_unreadable": "a JPEG 2000 image, which this build of Pillow cannot decode: install a Pillow with OpenJPEG, or"
    " convert the image to JPEG or PNG",
}
"""Reason of a RejectedRow -> sentence for people. The text is part of the index fingerprint: a change reruns the index
of every dataset with such a file."""

MAX_BYTES: Final = 1 << 29
"""Larger files are not read: even uncompressed, an image within any sensible pixel limit is smaller."""
# Formats of photographs, besides those of `data.images.formats`. Fixed, so that Pillow never tries its rare parsers.
_FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
_HEADS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_MOST_COMPONENTS: Final = 4  # of a JPEG 2000 image
_MOST_SCANS: Final = 500  # of a progressive JPEG; each is a pass over all pixels, and encoders write about ten
_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def unusable_image(name: str, rejected: RejectedRow) -> DataError:
    """Return the error about an image that a person has named, for callers that cannot do without it."""
    return DataError(
        f"{name} cannot be used: {REASONS[rejected.reason]} ({rejected.reason}). Give an intact {READABLE} file"
    )


def open_rgb(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the first frame of the image in `source` (a path or a file's bytes), upright and in 8-bit RGB.

    Partly transparent pixels are blended with white. Whatever the file contains, the only exception is RejectedRow with
    one of the `REASONS`: ``blank`` if every pixel is transparent, ``too_large`` for more than `max_pixels` (checked
    before decoding), ``truncated`` for anything else that a decoder cannot read.
    """
    content = source if isinstance(source, bytes) else read_bytes(source)
    if not content:
        raise RejectedRow("empty_file")
    try:
        return _decoded(content, max_pixels)
    except RejectedRow:
        raise
    except MemoryError as error:
        raise RejectedRow("out_of_memory") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedRow("too_large") from error
    except UnidentifiedImageError as error:
        known = content.startswith(_HEADS) or modern_format(content)
        raise RejectedRow("truncated" if known else "not_an_image") from error
    except Exception as error:  # the decoders of these formats do not document their exceptions
        raise RejectedRow("truncated") from error


def _decoded(content: bytes, max_pixels: int) -> Image.Image:
    modern = modern_format(content)
    if modern and not can_decode(modern):
        raise RejectedRow(UNREADABLE[modern])
    bare = _without_metadata(content, modern)
    image = Image.open(io.BytesIO(bare.content), formats=[modern] if modern else _FORMATS)
    if image.width * image.height > max_pixels or _is_costly(image, bare.content, max_pixels):
        raise RejectedRow("too_large")
    image.load()
    # Pillow reports the rotation of an AVIF image, which is not that of its EXIF block, as EXIF; HEIC is upright.
    told = orientation_of(image.info.get("exif", b"").removeprefix(b"Exif\0\0"), b"") if modern == "AVIF" else 0
    turn = _TRANSPOSE.get(told or bare.orientation)
    return to_rgb(image if turn is None else image.transpose(turn))


def _without_metadata(content: bytes, modern: ModernFormat | None) -> Bare:
    if modern == "JPEG2000":
        return jp2_without_metadata(content)
    return Bare(heif_without_metadata(content), UPRIGHT) if modern else without_metadata(content)


def _is_costly(image: Image.Image, content: bytes, max_pixels: int) -> bool:
    """Return True if decoding costs far more than the pixels: tiles larger than the image, too many scans,
    or a codestream that is larger than its header says.
    """
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(_TILE_WIDTH, 1)) * int(image.tag_v2.get(_TILE_LENGTH, 1)) > max_pixels
    if image.format == "JPEG2000":
        pixels, components = jp2_size(content)
        return pixels > max_pixels or components > _MOST_COMPONENTS
    return image.format == "JPEG" and content.count(b"\xff\xda") > _MOST_SCANS


def open_indexed(root: Path, path: str, sha256: str | None) -> Image.Image:
    """Return the image at `path`, relative to `root`, as `open_rgb` does, if its bytes still have the digest `sha256`.

    The bytes that are digested are the bytes that are decoded. Raises RejectedRow with the reason ``changed``, or one
    of those of `open_rgb` and `data.files.inside`.
    """
    content = read_bytes(inside(root, path))
    if digest_bytes(content) != sha256:
        raise RejectedRow("changed")
    return open_rgb(content, MOST_PIXELS)  # the index has already applied the dataset's own limit


def read_bytes(path: Path | str) -> bytes:
    """Return the bytes of the regular file, of the object in a store, or of the member of a tar shard at `path`.

    Raises RejectedRow with the reason ``missing``, ``too_large``, ``out_of_memory`` or ``unreadable`` (no permission, a
    folder, a pipe or a device; never blocks on one), and RetryableError if a store does not answer.
    """
    if (place := shards.place_of(path)) is not None:
        return shards.read_member(place, MAX_BYTES)
    if is_remote(path):
        return remote.read_capped(path, MAX_BYTES)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return _regular_bytes(handle)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise RejectedRow("missing") from error
    except (OSError, ValueError) as error:  # ValueError: the path contains NUL
        raise RejectedRow("unreadable") from error
    except MemoryError as error:
        raise RejectedRow("out_of_memory") from error


def _regular_bytes(handle: int) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise RejectedRow("unreadable")
    if status.st_size > MAX_BYTES:
        raise RejectedRow("too_large")
    with open(handle, "rb", buffering=0, closefd=False) as stream:
        return stream.readall()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image of any mode in 8-bit RGB; raise RejectedRow (``blank``) if every pixel is transparent."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (0, 0):
            raise RejectedRow("blank")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips 16-bit values at 255, which turns most such images white.
    values = np.asarray(image).astype(np.float64)
    hidden = values == image.info.get("transparency")
    if hidden.all():
        raise RejectedRow("blank")
    highest = float(values.max(initial=0.0))
    if image.mode == "F":
        scale = 255.0 if highest <= 1.0 else 1.0
    else:
        scale = 255.0 / 65535.0 if image.mode.startswith("I;16") or highest > 255.0 else 1.0
    gray = np.nan_to_num(values * scale).clip(0, 255).round().astype(np.uint8)
    gray[hidden] = 255  # white, like every other transparent pixel
    return Image.fromarray(gray).convert("RGB")
