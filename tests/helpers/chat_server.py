"""A small HTTP server with the OpenAI chat API that misbehaves on request."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Answer = Callable[[Image.Image, dict[str, Any]], dict[str, Any]]
TEXT = "A man is wearing a red shirt."
HTML = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"


def plain_answer(_: Image.Image, __: dict[str, Any]) -> dict[str, Any]:
    """Answer every request with the same text."""
    return {"text": TEXT}


def choices(text: str | None, tokens: int | None = 8, finish: str = "stop") -> dict[str, Any]:
    """Return a chat completion in vLLM's form."""
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 600, "completion_tokens": tokens},
    }


@dataclass
class ChatServer:
    """Settings of the server, and a record of its requests.

    answer: (image, request) -> arguments of `choices`. fault: (image, earlier requests for it) -> name of the method of
    `Handler` that answers instead, or None. models_fault: the same for the list of models. keys: authorization headers
    received. busiest: most requests at a time. ended: set when the server shuts down.
    """

    model: str = "served/llava"
    answer: Answer = plain_answer
    fault: Callable[[Image.Image, int], str | None] = lambda _, __: None
    models_fault: str | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    busiest: int = 0
    _busy: int = 0
    _asked: dict[bytes, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def enter(self, image: Image.Image, request: dict[str, Any]) -> int:
        """Record the start of a request; return how many requests there were for the image before."""
        with self._lock:
            self.requests.append(request)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            before = self._asked.get(image.tobytes(), 0)
            self._asked[image.tobytes()] = before + 1
            return before

    def leave(self) -> None:
        """Record the end of a request."""
        with self._lock:
            self._busy -= 1


class Handler(BaseHTTPRequestHandler):
    """One request: the documented answers, then one method per fault."""

    protocol_version = "HTTP/1.1"
    state: ChatServer

    def log_message(self, *_: Any) -> None:
        """Keep the terminal quiet."""

    def send(self, status: int, content: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.state.keys.add(self.headers.get("Authorization"))
        if self.path != "/v1/models":
            self.send(404, b'{"error": "no such page"}')
        elif self.state.models_fault:
            getattr(self, self.state.models_fault)()
        else:
            models = {"object": "list", "data": [{"id": self.state.model, "object": "model"}]}
            self.send(200, json.dumps(models).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.keys.add(self.headers.get("Authorization"))
        image = image_of(request)
        before = self.state.enter(image, request)
        try:
            fault = self.state.fault(image, before)
            with suppress(BrokenPipeError, ConnectionResetError):
                if fault:
                    getattr(self, fault)()
                else:
                    self.send(200, json.dumps(choices(**self.state.answer(image, request))).encode())
        finally:
            self.state.leave()

    # Faults

    def error_500(self) -> None:
        self.send(500, b'{"error": {"message": "CUDA error"}}')

    def busy_429(self) -> None:
        self.send(429, b'{"error": {"message": "slow down"}}', Retry_After="1")

    def bad_400(self) -> None:
        self.send(400, b'{"error": {"message": "max_tokens is too large"}}')

    def key_401(self) -> None:
        self.send(401, f'{{"error": "bad key: {self.headers.get("Authorization")}"}}'.encode())

    def absent_404(self) -> None:
        self.send(404, b'{"error": "Not Found"}')

    def moved_302(self) -> None:
        self.send(302, b"", Location="https://login.example/")

    def html(self) -> None:
        self.send(200, HTML, "text/html")

    def half_json(self) -> None:
        self.send(200, json.dumps(choices(TEXT)).encode()[:-9])

    def no_choices(self) -> None:
        self.send(200, b'{"choices": []}')

    def no_text(self) -> None:
        self.send(200, json.dumps(choices(None)).encode())

    def deep_json(self) -> None:
        self.send(200, b"[" * 200_000)

    def hang(self) -> None:
        self.state.ended.wait(30)
        self.close_connection = True

    def trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(300):
            self.wfile.write(b" ")
            time.sleep(0.05)
        self.close_connection = True

    def endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        while True:
            self.wfile.write(b" " * (1 << 16))

    def drop(self) -> None:
        self.close_connection = True


class QuietServer(ThreadingHTTPServer):
    """A server that does not report the clients that disconnect, because the faults make them do so."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Keep the terminal quiet."""


def image_of(request: dict[str, Any]) -> Image.Image:
    """Return the image of a chat request, which must be a PNG in a data URL."""
    (url,) = [part["image_url"]["url"] for part in parts_of(request) if part["type"] == "image_url"]
    head, content = url.split(",", 1)
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content, validate=True)), formats=["PNG"])


def parts_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of the only user message."""
    (message,) = [message for message in request["messages"] if message["role"] == "user"]
    return message["content"]


@contextmanager
def serving(**told: Any) -> Iterator[ChatServer]:
    """Run a server on a free port of this machine. told: fields of `ChatServer`."""
    state = ChatServer(**told)
    server = QuietServer(("127.0.0.1", 0), type("Told", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
