"""Removal of metadata from image files, keeping the bytes that decide the pixels, and the orientation.

Malformed metadata (a resolution stored as text, a truncated color profile, a text block that unpacks to gigabytes) can
make a decoder raise or exhaust memory although every pixel is intact. The decoder therefore gets files without EXIF,
XMP, color profiles, comments, text and further frames. Only the orientation is read, by the code below, which treats
anything unreadable as absent. Formats that store metadata apart from pixels: JPEG, PNG, WebP, TIFF and GIF;
`data.images.boxes` does the same for HEIC, AVIF and JPEG 2000.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

UPRIGHT: Final = 1

_ORIENTATION: Final = 0x0112
_XMP_ORIENTATION: Final = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\s*[\"'<]")
_MOST_ENTRIES: Final = 0xFFFF  # of a directory; the most that a classic TIFF file can have
_MAX_TEXT: Final = 1 << 20  # bytes, once unpacked

_EXIF_HEAD: Final = b"Exif\0\0"
_XMP_HEAD: Final = b"http://ns.adobe.com/xap/1.0/\0"
_GIF_HEAD: Final = 13  # bytes
_JFIF: Final = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE_BYTES: Final = 12  # least length of an Adobe segment with the color transform

# The TIFF tags that decide the pixels: size, layout, compression and the meaning of the samples.
_TIFF_PIXELS: Final = frozenset(
    {
        *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
        *(332, 334, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
    }
)
# TIFF type -> struct format of one value. Types 2 (text) and 5, 10 (fractions) get special treatment.
_TIFF_TYPES: Final = {
    **{1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"},
    **{13: "I", 16: "Q", 17: "q", 18: "Q"},
}


class Bare(NamedTuple):
    """A file without metadata, and its orientation in EXIF's numbering: 1 (upright) to 8."""

    content: bytes
    orientation: int


def without_metadata(content: bytes) -> Bare:
    """Return an image file without its metadata; other formats and damaged files are returned unchanged."""
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    if content[:6] in (b"GIF87a", b"GIF89a") and len(content) > _GIF_HEAD:
        return Bare(_gif(content), UPRIGHT)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(content)
    return Bare(content, UPRIGHT)


def _jpeg(content: bytes) -> Bare:
    kept, exif, xmp, at = [content[:2]], b"", b"", 2
    for marker, start, end in _jpeg_segments(content):
        body = content[start + 4 : end]
        if marker == 0xE1 and body.startswith(_EXIF_HEAD):
            exif += body[len(_EXIF_HEAD) :]
        elif marker == 0xE1 and body.startswith(_XMP_HEAD):
            xmp = body
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= len(_JFIF) - 4:
            kept.append(_JFIF)  # its presence decides the color space; its resolution may be malformed
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_adobe(marker, body):
            kept.append(content[start:end])
        at = end
    return Bare(b"".join([*kept, content[at:]]), orientation_of(exif, xmp))


def _is_adobe(marker: int, body: bytes) -> bool:
    return marker == 0xEE and body.startswith(b"Adobe") and len(body) >= _ADOBE_BYTES


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each complete segment before the first scan, skipping bytes between segments."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content):
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:  # without a body
            at += 2
        else:
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if marker in (0xDA, 0xD9) or not at + 4 <= end <= len(content):
                return
            yield marker, at, end
            at = end


def _png(content: bytes) -> Bare:
    kept, found, at = [content[:8]], dict[str, bytes](), 8
    while at + 8 <= len(content):
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        if not kind.isalpha():
            kept.append(content[at:])
            break
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(content[at:end])
        else:
            found |= _png_metadata(kind, content[at + 8 : end - 4])
        if kind == b"IEND":
            break
        at = end
    exif = found.get("exif") or found.get("raw", b"")
    return Bare(b"".join(kept), orientation_of(exif.removeprefix(_EXIF_HEAD), found.get("xmp", b"")))


def _png_metadata(kind: bytes, body: bytes) -> dict[str, bytes]:
    """Return the exif, xmp or raw (hexadecimal EXIF, as written by ImageMagick) content of one metadata chunk."""
    if kind == b"eXIf":
        return {"exif": body}
    keyword, _, rest = body.partition(b"\0")
    if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt":
        return {"xmp": _unpacked(rest[2:].split(b"\0", 2)[-1]) if rest[:1] == b"\1" else rest}
    if keyword == b"Raw profile type exif" and kind in (b"tEXt", b"zTXt"):
        lines = (rest if kind == b"tEXt" else _unpacked(rest[1:])).split(b"\n")[3:]
        try:
            return {"raw": bytes.fromhex(b"".join(lines).decode("ascii"))}
        except ValueError:
            return {}
    return {}


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, _MAX_TEXT)
    except zlib.error:
        return b""


def _webp(content: bytes) -> Bare:
    kept, found, at = [], dict[bytes, bytes](), 12
    limit = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    while at + 8 <= limit:
        kind, length = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if kind in (b"EXIF", b"XMP ", b"ICCP"):
            found[kind] = content[at + 8 : at + 8 + length]
        elif kind == b"VP8X" and length >= 1:
            flags = content[at + 8] & ~0x2C  # no color profile, EXIF or XMP
            kept.append(content[at : at + 8] + bytes([flags]) + content[at + 9 : end])
        else:
            kept.append(content[at:end])
        at = end
    exif = found.get(b"EXIF", b"").removeprefix(_EXIF_HEAD)
    orientation = orientation_of(exif, found.get(b"XMP ", b""))
    if not found:
        return Bare(content, orientation)
    body = b"WEBP" + b"".join(kept)
    return Bare(b"RIFF" + len(body).to_bytes(4, "little") + body, orientation)


def _gif(content: bytes) -> bytes:
    """Remove comments, texts and application data before the first frame."""
    at = _GIF_HEAD + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)  # after the color table
    kept = [content[:at]]
    while content[at : at + 1] == b"!":
        end = at + 2
        while end < len(content) and content[end]:
            end += content[end] + 1
        if content[at + 1 : at + 2] == b"\xf9":  # graphic control: names the transparent color
            kept.append(content[at : end + 1])
        at = end + 1
    return b"".join([*kept, content[at:]])


class _TiffEntry(NamedTuple):
    tag: int
    kind: int
    length: int  # values
    value: bytes  # 4 or 8 bytes: the values, or their offset
    whole: bytes


class _Tiff:
    """The first directory of a TIFF file or an EXIF block; without entries if it cannot be read.

    start: its offset in the file.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.order = "<" if content[:2] == b"II" else ">"
        self.big = content[2:4] in (b"+\0", b"\0+")
        self.start = 0
        self.entries = list(self._read()) if content[:2] in (b"II", b"MM") else []

    def _read(self) -> Iterator[_TiffEntry]:
        offset, head, layout = ("Q", "Q", "HHQ8s") if self.big else ("I", "H", "HHI4s")
        start = self.number(offset, 8 if self.big else 4)
        count = self.number(head, start) if start is not None else None
        if start is None or count is None:
            return
        self.start = start
        size = struct.calcsize(self.order + layout)
        first = start + struct.calcsize(self.order + head)
        for at in range(first, min(first + min(count, _MOST_ENTRIES) * size, len(self._content) - size + 1), size):
            whole = self._content[at : at + size]
            tag, kind, length, value = struct.unpack(self.order + layout, whole)
            yield _TiffEntry(tag, kind, length, value, whole)

    def number(self, kind: str, at: int) -> int | None:
        """Return the integer of the struct format `kind` at offset `at`, or None beyond the end of the block."""
        if at + struct.calcsize(self.order + kind) > len(self._content):
            return None
        value: int = struct.unpack_from(self.order + kind, self._content, at)[0]
        return value

    def orientation(self) -> int | None:
        """Return the orientation from the last entry with a value from 1 to 8, whatever its type; None if absent."""
        values = [self._first_value(entry) for entry in self.entries if entry.tag == _ORIENTATION]
        return next((int(value) for value in reversed(values) if value is not None and value in range(1, 9)), None)

    def _first_value(self, entry: _TiffEntry) -> float | None:
        layout = self.order + _TIFF_TYPES.get(entry.kind, "")
        size = struct.calcsize(layout)
        if not size or not entry.length:
            return None
        block = entry.value
        if size * entry.length > len(block):
            place = int.from_bytes(block, "little" if self.order == "<" else "big")
            block = self._content[place : place + size * min(entry.length, 8)]
        if len(block) < size:
            return None
        if entry.kind == 2:
            text = block[: entry.length].split(b"\0")[0].strip()
            return float(text) if text.isdigit() else None
        values = struct.unpack_from(layout, block)
        if len(values) == 2:
            return values[0] / values[1] if values[1] else None
        return float(values[0]) if math.isfinite(values[0]) else None


def _tiff(content: bytes) -> Bare:
    """Overwrite the directory by a shorter one: only entries that decide the pixels, and no next directory.

    Nothing is appended, so that pixels missing at the end of a truncated file stay missing.
    """
    tiff = _Tiff(content)
    kept = [entry.whole for entry in tiff.entries if entry.tag in _TIFF_PIXELS]
    if not kept:
        return Bare(content, UPRIGHT)
    xmp = next((entry for entry in tiff.entries if entry.tag == 700), None)
    place = int.from_bytes(xmp.value, "little" if tiff.order == "<" else "big") if xmp else 0
    orientation = tiff.orientation() or orientation_of(b"", content[place : place + xmp.length] if xmp else b"")
    head, end = ("Q", bytes(8)) if tiff.big else ("H", bytes(4))
    directory = struct.pack(tiff.order + head, len(kept)) + b"".join(kept) + end
    return Bare(content[: tiff.start] + directory + content[tiff.start + len(directory) :], orientation)


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """Return the orientation in an EXIF block or else in an XMP packet; upright if neither has one."""
    found = _Tiff(exif).orientation()
    if found is None and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found or UPRIGHT
