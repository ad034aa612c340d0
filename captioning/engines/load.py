"""Captioning engines, in this process or on a server, imported only when they are loaded."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from PIL import Image

from captioning.config import CaptionConfig
from captioning.reading import Loaded
from captioning.store.rows import CaptionRow


class CaptionEngine(Protocol):
    """A model that turns images into rows of the caption store."""

    @property
    def width(self) -> int:
        """Number of images that are captioned at once."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for the model; safe in threads."""

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Caption a stream of images and yield one row per image, as soon as they are done.

        status is ``image_error`` for an unreadable image and ``server_error`` if the server gave no usable response.
        Close the generator unless it is exhausted.
        """


def load_engine(config: CaptionConfig) -> CaptionEngine:
    """Return the engine that `config` names, ready to caption.

    Raises WeightsError, or what `server.ServerEngine.load` raises.
    """
    if config.engine == "openai":
        from captioning.engines.server import ServerEngine

        return ServerEngine.load(config)
    from captioning.engines.llava import Engine

    return Engine.load(config)
