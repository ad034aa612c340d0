"""Settings of captioning by a server."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from data.config import RUNTIME, SECRET, Config, RuntimeStr


class ServerConfig(Config):
    """Where a server with the OpenAI chat API is (vLLM and SGLang serve LLaVA that way), and how it is spoken to.

    The address, the key and the pace can change no caption. What the server makes of an image can: its side and its
    mean colour must be those of the model it serves.
    """

    url: RuntimeStr = "http://127.0.0.1:8000/v1"
    """Base of the API, without user, password or query: /chat/completions and /models follow it."""
    key_variable: RuntimeStr | None = None
    """Name of the environment variable that holds the API key; the key itself stands in no file. None: no key."""
    concurrency: Annotated[int, RUNTIME] = Field(default=32, ge=1, le=1024)
    """Requests under way at a time. The server makes batches of them: 64 to 256 keep a large GPU busy."""
    timeout: Annotated[float, RUNTIME] = Field(default=120.0, gt=0, le=3600)
    """Seconds for one request, from its first byte to its last."""
    attempts: Annotated[int, RUNTIME] = Field(default=6, ge=1, le=20)
    """How often a request that may pass later (timeout, no connection, HTTP 429 or 5xx, no JSON) is made in all."""
    backoff: Annotated[float, RUNTIME] = Field(default=1.0, ge=0, le=60)
    """Seconds before the second attempt; they double up to 30, and a server's own Retry-After counts if longer."""
    image_side: int = Field(default=336, ge=8, le=4096)
    """Pixels of the model's square input: images are framed to it here, so that the server has nothing to cut."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean colour (fractions) of the model's normalisation, which pads the image; CLIP's by default."""

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(
                "secret_address",
                "must hold no user, password or query; name the key's variable in caption.server.key_variable",
                {SECRET: True},
            )
        return url.rstrip("/")

    @field_validator("image_mean")
    @classmethod
    def _fractions(cls, mean: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError("must be fractions from 0 to 1")
        return mean
