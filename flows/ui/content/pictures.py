"""Small JPEG pictures of a dataset's images, made on demand from the image files and kept in bounded memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from PIL import Image

from data.errors import RejectedRow
from data.images.decode import open_indexed

MOST_BYTES: Final = 64 << 20
HEIGHTS: Final = (144, 480)
"""Heights that can be asked for, in pixels; smaller images are not enlarged."""


class Pictures:
    """JPEG pictures by key, the least recently used ones dropped beyond `most_bytes`."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def jpeg(self, root: Path, path: str, sha256: str, height: int) -> bytes:
        """Return an image of a dataset, at most `height` pixels high.

        Raises RejectedRow if the file is missing, outside `root`, unusable or changed since it was indexed.
        """
        key = (sha256, height)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        content = encoded(open_indexed(root, path, sha256), height)
        with self._lock:
            self._keep(key, content)
        return content

    def _keep(self, key: tuple[str, int], content: bytes) -> None:
        self._size += len(content) - len(self._kept.get(key, b""))
        self._kept[key] = content
        while self._size > self._most:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)


def encoded(image: Image.Image, height: int) -> bytes:
    """Return an RGB image as JPEG, at most `height` pixels high."""
    image.thumbnail((2 * height, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def placeholder(rejected: RejectedRow | None) -> str:
    """Return an SVG picture that says why an image is not shown."""
    words = "folder not found" if rejected is None else rejected.reason.replace("_", " ")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 144" width="72" height="144">'
        '<rect width="72" height="144" fill="#8884"/>'
        f'<text x="36" y="76" font-family="sans-serif" font-size="9" fill="#888" text-anchor="middle">{words}</text>'
        "</svg>"
    )
