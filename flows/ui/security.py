"""Protection of a page that any program of this machine can reach: hosts, origins, tokens, sizes and headers.

A page of another site may send requests to 127.0.0.1 from the user's browser, also under a name of its own that it lets
resolve to 127.0.0.1 (DNS rebinding). So the Host header has to name this server, a request that another site starts is
refused unless it opens a page, and a write needs the Origin of this page and the token that only this page knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.ui.numbers import whole_number

MOST_BYTES: Final = 32 << 20
"""Largest body of a request, and so the largest picture to search by."""
TOKEN_HEADER: Final = "X-CSRF-Token"
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE: Final = ("GET", "HEAD")
_DEFAULT_PORT: Final = 80

Refuse = Callable[[int, str], ASGIApp]
"""Status and one sentence -> the answer."""


class TooLargeError(Exception):
    """The body of a request is larger than `MOST_BYTES`."""


class Guard:
    """ASGI middleware with the rules of this module. token: secret of this process. refuse: makes an error page."""

    def __init__(self, app: ASGIApp, *, token: str, refuse: Refuse) -> None:
        self.app = app
        self.token = token
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        problem = self._problem(scope)
        app = self.app if problem is None else self.refuse(*problem)
        if scope["method"] == "HEAD":  # the routes answer GET; a server drops the body, and so does `_without_body`
            await app({**scope, "method": "GET"}, _limited(receive), _without_body(send_protected))
        else:
            await app(scope, _limited(receive), send_protected)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence for a request that is refused."""
        headers, port = Headers(scope=scope), scope["server"][1]
        host = headers.get("host", "")
        name = host.removesuffix(f":{port}")
        if name not in ("127.0.0.1", "localhost") or host not in _written(name, port):
            return 421, f"This page answers at http://127.0.0.1:{port} only."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _opens_a_page(headers):
            return 403, "Another site asked for this; open the page itself."
        size = whole_number(headers.get("content-length", "0"))
        if size is None or size > MOST_BYTES:
            return 413, f"The file is larger than {MOST_BYTES >> 20} MiB; choose a smaller one."
        if scope["method"] not in _SAFE:
            return self._problem_of_write(headers, _written(name, port))
        return None

    def _problem_of_write(self, headers: Headers, hosts: Sequence[str]) -> tuple[int, str] | None:
        if headers.get("origin") not in [f"http://{host}" for host in hosts]:
            return 403, "Another site asked for this change; nothing was changed."
        if not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self.token.encode()):
            return 403, "This page is older than the server that is running now; reload it."
        return None


def _written(name: str, port: int) -> tuple[str, ...]:
    """Return the ways to write a host; browsers leave out the default port."""
    return (f"{name}:{port}", name) if port == _DEFAULT_PORT else (f"{name}:{port}",)


def _without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sent


def _opens_a_page(headers: Headers) -> bool:
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _limited(receive: Receive) -> Receive:
    """Return `receive`, which raises TooLargeError beyond the limit, whatever the declared length is."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MOST_BYTES:
            raise TooLargeError
        return message

    return limited
