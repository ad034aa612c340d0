"""Removal of metadata from files made of boxes: HEIC and AVIF (ISO/IEC 14496-12) and JPEG 2000 (ISO/IEC 15444-1).

As in `data.images.metadata`, decoders do not see EXIF, XMP and the resolution, whose errors could make them fail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from data.images.metadata import Bare, orientation_of

_JP2_KEPT: Final = frozenset({b"jP  ", b"ftyp", b"jp2c"})
_JP2_HEADER: Final = frozenset({b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef"})  # what decides the pixels
_EXIF_UUID: Final = b"JpgTiffExif->JP2"
_XMP_UUID: Final = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_SIZ: Final = b"\xff\x4f\xff\x51"
_METADATA_ITEMS: Final = (b"Exif", b"mime")  # mime: XMP
_UNKNOWN_ITEM: Final = b"skip"  # decoders ignore items of types that they do not know


class _Box(NamedTuple):
    kind: bytes
    start: int
    body: int
    end: int


def _boxes(content: bytes, start: int, end: int) -> Iterator[_Box]:
    """Yield the boxes between two offsets; stops at the first that contradicts itself."""
    while start + 8 <= end:
        (length, kind), body = struct.unpack_from(">I4s", content, start), start + 8
        if length == 1:
            length, body = int.from_bytes(content[body : body + 8], "big"), body + 8
        stop = end if length == 0 else start + length
        if not body <= stop <= end:
            return
        yield _Box(kind, start, body, stop)
        start = stop


def jp2_without_metadata(content: bytes) -> Bare:
    """Return a JPEG 2000 file with only the boxes that decide its pixels, and its orientation."""
    kept, exif, xmp, at = list[bytes](), b"", b"", 0
    for box in _boxes(content, 0, len(content)):
        body, at = content[box.body : box.end], box.end
        if box.kind in _JP2_KEPT:
            kept.append(content[box.start : box.end])
        elif box.kind == b"jp2h":
            parts = [body[one.start : one.end] for one in _boxes(body, 0, len(body)) if one.kind in _JP2_HEADER]
            kept.append(struct.pack(">I4s", 8 + sum(map(len, parts)), b"jp2h") + b"".join(parts))
        elif box.kind == b"uuid" and body.startswith(_EXIF_UUID):
            exif = body.removeprefix(_EXIF_UUID)
        elif box.kind == b"uuid" and body.startswith(_XMP_UUID):
            xmp = body
    if not kept:  # a bare codestream
        return Bare(content, orientation_of(b"", b""))
    return Bare(b"".join([*kept, content[at:]]), orientation_of(exif, xmp))


def jp2_size(content: bytes) -> tuple[int, int]:
    """Return the pixels (width x height) and the number of components that the codestream announces; 0, 0 without one.

    The header of the file may announce fewer.
    """
    at = content.find(_SIZ)
    if at < 0 or at + 44 > len(content):
        return 0, 0
    right, bottom, left, top = struct.unpack_from(">4I", content, at + 8)
    (components,) = struct.unpack_from(">H", content, at + 40)
    return max(right - left, 0) * max(bottom - top, 0), components


def heif_without_metadata(content: bytes) -> bytes:
    """Return a HEIC or AVIF file whose EXIF and XMP items have a type that decoders ignore. The length is unchanged.

    Its orientation is not in the EXIF block but in properties that the decoders apply or report.
    """
    changed = bytearray(content)
    for outer in _boxes(content, 0, len(content)):
        if outer.kind != b"meta":
            continue
        for box in _boxes(content, outer.body + 4, outer.end):
            if box.kind == b"iinf":
                for at in _item_types(content, box):
                    if content[at : at + 4] in _METADATA_ITEMS:
                        changed[at : at + 4] = _UNKNOWN_ITEM
    return bytes(changed)


def _item_types(content: bytes, box: _Box) -> Iterator[int]:
    """Yield the offset of the type of each item in an `iinf` box."""
    first = box.body + (6 if content[box.body : box.body + 1] == b"\0" else 8)
    for entry in _boxes(content, first, box.end):
        version = content[entry.body] if entry.body < entry.end else 0
        at = entry.body + 4 + {2: 4, 3: 6}.get(version, len(content))
        if entry.kind == b"infe" and at + 4 <= entry.end:
            yield at
