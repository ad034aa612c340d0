"""The captioning engine that uses a server with the OpenAI chat API, such as vLLM or SGLang.

Images are framed here, as for the in-process engine, and sent as PNG, so the server neither resizes nor crops them. The
server builds the prompt from its model's chat template; for LLaVA-1.5 that is `Template.prompt`.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

from PIL import Image

from captioning.config import CaptionConfig
from captioning.engines.server_client import ChatClient, Unanswered
from captioning.framing import frame
from captioning.prompts.replies import Reply, prompt_until_well_formed
from captioning.reading import Loaded
from captioning.store.rows import CaptionRow
from data.errors import RetryableError

log = logging.getLogger(__name__)

_PATIENCE: Final = 8  # the run never stops for fewer images in a row without a response


class ServerEngine:
    """A model on a server, with one prompt."""

    def __init__(self, config: CaptionConfig, client: ChatClient) -> None:
        self.config = config
        self._client = client
        self._unanswered = 0  # images in a row without a response

    @classmethod
    def load(cls, config: CaptionConfig) -> ServerEngine:
        """Return the engine if the server responds.

        Raises RetryableError if it does not respond, ConfigError if the environment variable of the key is not set, and
        `server_client.RefusalError` if the server rejects the request.
        """
        client = ChatClient(config.server)
        try:
            served = client.models()
        except Unanswered as error:
            raise RetryableError(
                f"caption.server.url={config.server.url}: no usable response from the server: {error}. Check that it "
                "runs and that the address is the base of the API, which usually ends in /v1"
            ) from error
        if served is not None and config.model not in served:
            # Not an error: some servers load a model on request.
            names = ", ".join(served) or "no model"
            log.warning("the server %s lists %s, not caption.model=%s", config.server.url, names, config.model)
        return cls(config, client)

    @property
    def width(self) -> int:
        """Number of concurrent requests."""
        return self.config.server.concurrency

    def prepare(self, image: Image.Image) -> Image.Image:
        """Frame one RGB image for the model on the server; thread-safe."""
        server = self.config.server
        return frame(image, self.config.framing, (server.image_side, server.image_side), server.image_mean)

    def rows(self, images: Iterable[Loaded]) -> Generator[list[CaptionRow], None, None]:
        """Caption a stream of images and yield their rows as the responses arrive, in any order.

        An image whose requests all fail becomes a row with status ``server_error``. Raises RetryableError if as many
        images in a row fail as there are concurrent requests: then the server has failed.
        """
        threads = ThreadPoolExecutor(self.width)
        try:
            running: set[Future[CaptionRow]] = set()
            for item in images:
                running.add(threads.submit(self._row, item))
                if len(running) >= self.width:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield self._checked(done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield self._checked(done)
        except BaseException:
            self._client.close()  # otherwise the running requests would be awaited
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _checked(self, done: Iterable[Future[CaptionRow]]) -> list[CaptionRow]:
        """Return the finished rows; raise RetryableError if too many in a row lack a response."""
        rows = [future.result() for future in done]
        for row in rows:
            if row.reply is not None:
                self._unanswered = 0
            self._unanswered += row.status == "server_error"
            if self._unanswered >= max(self.width, _PATIENCE):
                raise RetryableError(
                    f"the server {self.config.server.url} did not respond to the last {self._unanswered} images: "
                    f"{row.error}. Earlier captions are kept; run again when the server responds"
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

    def request(self, url: str, seed: int | None) -> dict[str, object]:
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
    """Return an image as a PNG in a data URL, lossless."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
