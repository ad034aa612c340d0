"""Client of the OpenAI chat API, with retries and a time limit for every request.

Temporary failures (no connection, a timeout, HTTP 408, 425, 429 or 5xx, a response that is not the API's JSON) are
retried after a pause that doubles; after the last attempt they raise `Unanswered`. What the user has to fix (a wrong
key, model or address) raises `RefusalError` at once.
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
    401: "check the key in the environment variable that caption.server.key_variable names",
    403: "check the key in the environment variable that caption.server.key_variable names",
    404: "check that caption.server.url is the base of the API (usually .../v1) and that the server has caption.model",
}
_LONGEST_PAUSE: Final = 30.0
_LONGEST_RESPONSE: Final = 8 << 20  # bytes; a caption needs about a thousand
_SHOWN: Final = 200  # characters of a server's message

T = TypeVar("T")


class Unanswered(Exception):  # noqa: N818 - the state of one request
    """A request without a usable response after all attempts; the message gives the reason."""


class RefusalError(ClipScgiError):
    """The server rejects a request, and would reject it again. status: HTTP status code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _MayPass(Exception):  # noqa: N818
    """An attempt failed, but the next one may succeed. pause: seconds that the server requests."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class ChatClient:
    """A client of one server; thread-safe."""

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
        """Close the connections; running requests fail soon."""
        self._closed.set()
        self._http.close()

    def models(self) -> list[str] | None:
        """Return the names of the models on the server, or None if it does not list them."""
        try:
            return self._request("GET", "/models", None, lambda content: [model["id"] for model in content["data"]])
        except RefusalError as error:
            if error.status in (404, 405):
                return None
            raise

    def complete(self, request: Mapping[str, object]) -> Reply:
        """Return the reply to a chat request."""
        return self._request("POST", "/chat/completions", request, _completion)

    def _request(self, method: str, path: str, body: Mapping[str, object] | None, read: Callable[[Any], T]) -> T:
        """Send a request until its response can be read. Raises Unanswered or RefusalError."""
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

    def _attempt(self, method: str, path: str, body: Mapping[str, object] | None, read: Callable[[Any], T]) -> T:
        try:
            with self._http.stream(method, self._config.url + path, json=body) as response:
                content = self._content(response)
        except httpx.TimeoutException as error:
            raise _MayPass(f"no response within {self._config.timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:  # RuntimeError: the client was closed
            raise _MayPass(self._masked(f"{type(error).__name__}: {error}")) from error
        self._check_status(response, content)
        try:
            return read(json.loads(content))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            kind = response.headers.get("content-type", "unknown")
            problem = f"a response of type {kind} that is not the API's JSON: {_text(content)}"
            raise _MayPass(self._masked(problem)) from error

    def _content(self, response: httpx.Response) -> bytes:
        """Read a response, with a limit on its total time and size."""
        deadline = time.monotonic() + self._config.timeout
        content = bytearray()
        for block in response.iter_bytes():
            content += block
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the response is too slow")
            if len(content) > _LONGEST_RESPONSE:
                raise _MayPass(f"a response of more than {_LONGEST_RESPONSE >> 20} MiB")
        return bytes(content)

    def _check_status(self, response: httpx.Response, content: bytes) -> None:
        status = response.status_code
        if status == httpx.codes.OK:
            return
        problem = self._masked(f"HTTP {status}: {_text(content)}")
        if status in _LATER or httpx.codes.is_server_error(status):
            raise _MayPass(problem, _seconds(response.headers.get("retry-after")))
        remedy = _REMEDIES.get(status, "fix the server or the settings under caption.server, and run again")
        raise RefusalError(f"the server {self._config.url} rejects the request with {problem}; {remedy}", status)

    def _masked(self, message: str) -> str:
        """Return a server's message with the key masked."""
        return message.replace(self._key, "***") if self._key else message


def _completion(content: Any) -> Reply:
    choice = content["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("the response has no text")
    usage = content.get("usage") or {}
    truncated = choice.get("finish_reason") == "length"
    return Reply(text=text, n_tokens=usage.get("completion_tokens"), truncated=truncated)


def _text(content: bytes) -> str:
    """Return the beginning of a response in one line."""
    return " ".join(content[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]


def _seconds(retry_after: str | None) -> float:
    # HTTP also allows a date; the usual pause serves in that case.
    return float(retry_after) if retry_after and retry_after.isascii() and retry_after.isdigit() else 0.0


def _key(config: ServerConfig) -> str | None:
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable)
    if not key:
        raise ConfigError(
            f"caption.server.key_variable={config.key_variable}: this environment variable is not set; put the "
            "server's API key there, or set caption.server.key_variable=null"
        )
    return key
