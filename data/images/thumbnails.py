"""Thumbnails as data URIs: each image is read once and re-encoded, so that only its pixels reach the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import RejectedRow
from data.images.decode import open_indexed


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One picture of a page. `source`: its data URI, or None if `problem` says why it is unavailable."""

    source: str | None
    problem: str | None
    width: int  # pixels
    height: int

    def decoded(self) -> Image.Image | None:
        """Return the picture as an image, None if it is unavailable."""
        if self.source is None:
            return None
        return Image.open(io.BytesIO(base64.b64decode(self.source.partition(",")[2]))).convert("RGB")


class Thumbnails:
    """Thumbnails of the images under `root`, at most `height` pixels high and never enlarged.

    A file that is missing, unreadable or changed since it was indexed (`digests`: path -> sha256) gives a placeholder
    and is listed in `problems`.
    """

    def __init__(self, root: Path, digests: Mapping[str, str], height: int) -> None:
        self.root = root
        self.digests = digests
        self.height = height
        self.problems: dict[str, str] = {}
        self._made: dict[str, Thumbnail] = {}

    def __call__(self, path: str) -> Thumbnail:
        """Return the thumbnail of the image at `path`, relative to the root."""
        if path not in self._made:
            self._made[path] = self.drawn(path, lambda image: image)
        return self._made[path]

    def drawn(self, path: str, draw: Callable[[Image.Image], Image.Image]) -> Thumbnail:
        """Return the thumbnail of the image at `path` after `draw`, which gets it in RGB at the thumbnail's size."""
        try:
            return self._make(path, draw)
        except RejectedRow as rejected:
            self.problems[path] = rejected.reason
            problem = rejected.reason.replace("_", " ")
            return Thumbnail(source=None, problem=problem, width=self.height // 2, height=self.height)

    def _make(self, path: str, draw: Callable[[Image.Image], Image.Image]) -> Thumbnail:
        image = open_indexed(self.root, path, self.digests.get(path))
        image.thumbnail((2 * self.height, self.height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        image = draw(image)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82, subsampling=0, optimize=True)
        code = base64.b64encode(buffer.getvalue()).decode("ascii")
        width, height = image.size
        return Thumbnail(source=f"data:image/jpeg;base64,{code}", problem=None, width=width, height=height)
