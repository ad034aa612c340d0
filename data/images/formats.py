"""HEIC, AVIF and JPEG 2000: how to recognize them, and whether this installation can decode them.

Pillow decodes AVIF and JPEG 2000 where it was built with them, and HEIC with the plugin pillow-heif (extra `heif`).
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal

from PIL import Image, features

ModernFormat = Literal["AVIF", "HEIF", "JPEG2000"]

READABLE: Final = "JPEG, PNG, WebP, AVIF, JPEG 2000, TIFF, BMP, GIF or PPM"
"""Formats that a default installation decodes."""

UNREADABLE: Final[dict[ModernFormat, str]] = {
    "AVIF": "avif_unreadable",
    "HEIF": "heic_unreadable",
    "JPEG2000": "jp2_unreadable",
}
"""Format -> reason of a RejectedRow if it cannot be decoded here."""

_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
)
_JP2_HEADS: Final = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")  # a file, a bare codestream
_MOST_BRANDS: Final = 64  # bytes


def modern_format(content: bytes) -> ModernFormat | None:
    """Return the format that the first bytes of a file announce, or None if it is none of the three."""
    if content.startswith(_JP2_HEADS):
        return "JPEG2000"
    if content[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(content[:4], "big"), _MOST_BRANDS)
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


@cache
def can_decode(name: ModernFormat) -> bool:
    """Return True if Pillow can decode a format here; registers the plugin for HEIC."""
    if name == "AVIF":
        return bool(features.check("avif"))
    if name == "JPEG2000":
        return bool(features.check("jpg_2000"))
    try:
        import pillow_heif
    except (ImportError, OSError):  # not installed, or a library of the system is missing
        return False
    pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN


def decoders() -> str:
    """Return the formats that can be decoded here, as a part of keys under which results of decoding are remembered."""
    return " ".join(name for name in sorted(UNREADABLE) if can_decode(name))
