"""What captions: a model in this process, or one behind a server. Loads neither before it is asked to."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Protocol

from PIL import Image

from captioning.config import CaptionConfig
from captioning.reading import Loaded


class CaptionEngine(Protocol):
    """Images in, rows of the caption store out."""

    @property
    def width(self) -> int:
        """How many images it works on at once."""

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for the model; safe in threads."""

    def rows(self, images: Iterable[Loaded]) -> Generator[list[dict[str, Any]], None, None]:
        """Caption a stream of images and yield a row for each, as they are done; closed unless it is used up.

        Rows have the fields of schemas.SHARD; status is ``image_error`` where the image has no pixels and
        ``server_error`` where a server gave no usable answer.
        """


def load_engine(config: CaptionConfig) -> CaptionEngine:
    """Return the engine of `config`, ready to caption. Raises WeightsError, or what `server.ServerEngine.load` does."""
    if config.engine == "openai":
        from captioning.engines.server import ServerEngine

        return ServerEngine.load(config)
    from captioning.engines.llava import Engine

    return Engine.load(config)
