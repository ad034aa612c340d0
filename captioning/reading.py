"""Reading of image files in threads, ahead of the captioning model.

Each file is read once into memory, and its digest is checked on the same bytes that are decoded, so a caption is never
attached to an image that changed after it was indexed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import RejectedRow
from data.images.decode import open_indexed
from data.process.read_ahead import map_ahead


@dataclass(frozen=True, kw_only=True)
class Pending:
    """An image to caption. sha256: of its bytes. paths: all files with these bytes, relative to the root."""

    sha256: str
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An image framed for the model, or the reason why it cannot be read."""

    sha256: str
    image: Image.Image | None
    reason: str | None


def load(item: Pending, root: Path, prepare: Callable[[Image.Image], Image.Image]) -> Loaded:
    """Read, check, decode and prepare one image from the first of its paths that works."""
    reason = "missing"
    for path in item.paths:
        try:
            image = open_indexed(root, path, item.sha256)
            return Loaded(sha256=item.sha256, image=prepare(image), reason=None)
        except RejectedRow as error:
            reason = error.reason
    return Loaded(sha256=item.sha256, image=None, reason=reason)


def read_ahead(
    items: Iterable[Pending], root: Path, prepare: Callable[[Image.Image], Image.Image], *, workers: int, ahead: int
) -> Generator[Loaded, None, None]:
    """Yield the images of `items` in order, reading up to `ahead` of them in advance in `workers` threads.

    Close the generator unless it is exhausted (see `map_ahead`).
    """
    return map_ahead(lambda item: load(item, root, prepare), items, threads=workers, ahead=ahead)
