"""The engine that asks a server with the OpenAI chat API, as vLLM and SGLang serve LLaVA.

Images are framed here, as for the engine in this process, and sent as PNG: the server has nothing to resize or to cut.
The server writes the prompt by the chat template of its model; for LLaVA-1.5 that is `Template.prompt`.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final

from PIL import Image

from captioning.config import CaptionConfig
from captioning.engines.server_client import ChatClient, Unanswered
from captioning.framing import frame
from captioning.prompts.replies import Reply, prompt_until_well_formed
from captioning.reading import Loaded
from captioning.store.rows import CaptionRow
from data.errors import RetryableError

log = logging.getLogger(__name__)

_PATIENCE: Final = 8  # images without an answer, one after the other, that are never enough to give up


class ServerEngine:
    """A model that a server runs, with one prompt."""

    def __init__(self, config: CaptionConfig, client: ChatClient) -> None:
        self.config = config
        self._client = client
        self._unanswered = 0  # images in a row

    @classmethod
    def load(cls, config: CaptionConfig) -> ServerEngine:
        """Return the engine once the server answers.

        Raises RetryableError while it does not, ConfigError when the key's variable is not set, and
        `server_client.RefusalError` when the server wants something else.
        """
        client = ChatClient(config.server)
        try:
            served = client.models()
        except Unanswered as error:
            raise RetryableError(
                f"the server {config.server.url} (caption.server.url) gives no usable answer: {error}. Is it running, "
                "and does the address end where the API begins, usually in /v1?"
            ) from error
        if served is not None and config.model not in served:
            # No error: some servers load what they are asked for.
            names = ", ".join(served) or "no model"
            log.warning("the server %s offers %s; it is asked for %s", config.server.url, names, config.model)
        return cls(config, client)

    @property
    def width(self) -> int:
        """Requests under way at a time."""
        return self.config.server.concurrency

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for the served model; safe in threads."""
        return frame(image, self.config.framing, self.config.server.image_side, self.config.server.image_mean)

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Caption a stream of images and yield their rows as the answers come, in no order.

        An image whose requests all fail becomes a row with status ``server_error``. Raises RetryableError when as many
        as are under way at a time fail one after the other: then it is the server that fails.
        """
        threads = ThreadPoolExecutor(self.width)
        try:
            running: set[Future[CaptionRow]] = set()
            for item in images:
                running.add(threads.submit(self._row, item))
                if len(running) >= self.width:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield self._watched(done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield self._watched(done)
        except BaseException:
            self._client.close()  # or the requests under way would be waited for
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _watched(self, done: Iterable[Future[CaptionRow]]) -> list[CaptionRow]:
        rows = [future.result() for future in done]
        for row in rows:
            if row.reply is not None:
                self._unanswered = 0
            self._unanswered += row.status == "server_error"
            if self._unanswered >= max(self.width, _PATIENCE):
                raise RetryableError(
                    f"the server {self.config.server.url} left the last {self._unanswered} images unanswered: "
                    f"{row.error}. Captions made before are kept; run again when it answers"
                )
        return rows

    def _row(self, item: Loaded) -> CaptionRow:
        if item.image is None:
            return CaptionRow(image_sha256=item.sha256, status="image_error", error=item.reason)
        url = {item.sha256: data_url(item.image)}
        try:
            replies = prompt_until_well_formed(
                url, self._replies, self.config.regenerate, self.config.prompt_template.id
            )
        except Unanswered as error:
            return CaptionRow(image_sha256=item.sha256, status="server_error", error=str(error))
        return CaptionRow.of(item.sha256, replies[item.sha256])

    def _replies(self, urls: Sequence[str], seeds: Sequence[int] | None) -> list[Reply]:
        drawn = [None] * len(urls) if seeds is None else seeds
        return [self._client.complete(self.request(url, seed)) for url, seed in zip(urls, drawn, strict=True)]

    def request(self, url: str, seed: int | None) -> dict[str, Any]:
        """Return the chat request for the image at `url`: greedy, or sampled with `seed`."""
        template = self.config.prompt_template
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": template.instruction}]
        system = [{"role": "system", "content": template.system}] if template.system else []
        drawn = {} if seed is None else {"temperature": self.config.regenerate.temperature, "seed": seed}
        return {
            "model": self.config.model,
            "messages": [*system, {"role": "user", "content": content}],
            "max_tokens": self.config.token_limit,
            "temperature": 0,
            **drawn,
        }


def data_url(image: Image.Image) -> str:
    """Return an image as a PNG in a data URL: every pixel as it was framed."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
