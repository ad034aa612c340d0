"""The server of the page: a free port on 127.0.0.1, the browser, and an orderly end."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from data.errors import ConfigError
from flows.interrupts import left_to_server

ADDRESS: Final = "127.0.0.1"
_GRACE_SECONDS: Final = 2


def listen(port: int, *, exactly: bool) -> socket.socket:
    """Return a socket that listens on 127.0.0.1 at `port`, or at a free port if that is taken.

    exactly: raise ConfigError instead of taking another port.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
    except OSError as error:
        if exactly:
            found.close()
            raise ConfigError(
                f"ui: port {port} cannot be used ({error.strerror}); give another --port, or none for a free one"
            ) from error
        found.bind((ADDRESS, 0))
    found.listen(128)
    return found


def serve(app: ASGIApp, found: socket.socket, *, started: Callable[[], None] = lambda: None) -> None:
    """Answer requests until Ctrl-C. started: called once requests are answered."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    with left_to_server():
        Server(config, started).run(sockets=[found])


class Server(uvicorn.Server):
    """A server that leaves signals to the command and says when it has started."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._say_started = started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, without raising it again afterwards: it ends a server that has done all its work."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer requests."""
        await super().startup(sockets)
        self._say_started()


def open_browser(url: str) -> None:
    """Open the page in the user's browser, in a thread: a text browser would wait until it is closed."""
    threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()
