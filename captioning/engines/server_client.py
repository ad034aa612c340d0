"""A client of the OpenAI chat API that does not give up at the first fault, and never waits for ever.

What may pass later (no connection, a timeout, HTTP 408, 425, 429 or 5xx, an answer that is not the API's JSON) is tried
again after a pause that doubles, and then raises `Unanswered`. What a person has to mend (a wrong key, model or
address) raises `RefusalError` at once.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import httpx

from captioning.config import ServerConfig
from captioning.prompts.replies import Reply
from data.errors import ClipScgiError, ConfigError

_LATER: Final = (408, 425, 429)
_REMEDIES: Final = {
    401: "is the key in caption.server.key_variable right?",
    403: "is the key in caption.server.key_variable right?",
    404: "does caption.server.url end where the API begins (usually in /v1), and is caption.model served there?",
}
_LONGEST_PAUSE: Final = 30.0
_LONGEST_ANSWER: Final = 8 << 20  # bytes; a caption takes a thousand
_SHOWN: Final = 200  # characters of a server's message

T = TypeVar("T")


class Unanswered(Exception):  # noqa: N818 - what happened to one request
    """A request had no usable answer, however often it was made; the message says why."""


class RefusalError(ClipScgiError):
    """The server refuses requests like this one. status: of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _MayPass(Exception):  # noqa: N818
    """One attempt failed as another may not. pause: seconds the server asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class ChatClient:
    """Asks one server; safe with many threads."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._key = _key(config)
        self._closed = threading.Event()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=config.timeout,
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    def close(self) -> None:
        """Stop: requests under way fail soon."""
        self._closed.set()
        self._http.close()

    def models(self) -> list[str] | None:
        """Return the names of the models that the server offers; None where it does not tell."""
        try:
            return self._ask("GET", "/models", None, lambda answer: [model["id"] for model in answer["data"]])
        except RefusalError as error:
            if error.status in (404, 405):
                return None
            raise

    def complete(self, request: Mapping[str, Any]) -> Reply:
        """Return the reply to a chat request."""
        return self._ask("POST", "/chat/completions", request, _completion)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        """Make a request until its answer can be read. Raises Unanswered, or RefusalError."""
        pause = self._config.backoff
        for left in reversed(range(self._config.attempts)):
            try:
                return self._attempt(method, path, body, read)
            except _MayPass as error:
                if not left or self._closed.is_set():
                    raise Unanswered(f"{error} ({self._config.attempts} attempts)") from error
                self._closed.wait(min(max(pause, error.pause), _LONGEST_PAUSE))
                pause *= 2
        raise AssertionError("unreachable: attempts is at least 1")

    def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        try:
            with self._http.stream(method, self._config.url + path, json=body) as response:
                content = self._content(response)
        except httpx.TimeoutException as error:
            raise _MayPass(f"no answer within {self._config.timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:  # RuntimeError: the client was closed
            raise _MayPass(self._plain(f"{type(error).__name__}: {error}")) from error
        self._check_status(response, content)
        try:
            return read(json.loads(content))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            kind = response.headers.get("content-type", "an unknown type")
            raise _MayPass(self._plain(f"an answer of {kind} that is not the API's JSON: {_text(content)}")) from error

    def _content(self, response: httpx.Response) -> bytes:
        """Read an answer that may neither trickle past the deadline nor fill the memory."""
        deadline = time.monotonic() + self._config.timeout
        content = bytearray()
        for block in response.iter_bytes():
            content += block
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer trickles")
            if len(content) > _LONGEST_ANSWER:
                raise _MayPass(f"an answer of more than {_LONGEST_ANSWER >> 20} MiB")
        return bytes(content)

    def _check_status(self, response: httpx.Response, content: bytes) -> None:
        status = response.status_code
        if status == httpx.codes.OK:
            return
        told = self._plain(f"HTTP {status}: {_text(content)}")
        if status in _LATER or httpx.codes.is_server_error(status):
            raise _MayPass(told, _seconds(response.headers.get("retry-after")))
        remedy = _REMEDIES.get(status, "mend the server or the settings under caption.server, and run again")
        raise RefusalError(f"the server {self._config.url} refuses with {told}; {remedy}", status)

    def _plain(self, message: str) -> str:
        """Return a server's words without the key, should it repeat it."""
        return message.replace(self._key, "***") if self._key else message


def _completion(answer: Any) -> Reply:
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("the answer has no text")
    usage = answer.get("usage") or {}
    truncated = choice.get("finish_reason") == "length"
    return Reply(text=text, n_tokens=usage.get("completion_tokens"), truncated=truncated)


def _text(content: bytes) -> str:
    """Return the beginning of an answer in one line."""
    return " ".join(content[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]


def _seconds(retry_after: str | None) -> float:
    # The other form that HTTP allows, a date, is not worth a parser: the usual pause will do.
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0


def _key(config: ServerConfig) -> str | None:
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable)
    if not key:
        raise ConfigError(
            f"caption.server.key_variable: the environment variable {config.key_variable} is not set; "
            "put the API key of the server there"
        )
    return key
