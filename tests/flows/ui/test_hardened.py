"""The page under damaged files and unusual requests."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from captioning.corrections import Corrections
from data.artifacts.store import ArtifactStore
from flows.ui.security import Guard
from tests.helpers.stages import make_artifact
from tests.helpers.ui_server import large_store, serving


def test_a_damaged_run_is_named_with_the_reason(tmp_path):
    store = ArtifactStore(tmp_path)
    made = make_artifact(store, "evaluate", {"a": 1}, lambda folder: (folder / "metrics.json").write_text("{}")).ref
    (made.folder / "metrics.json").write_text("{damaged")
    with serving(store) as url:
        assert f"1 damaged artifact is left out: evaluate/{made.fingerprint} (" in httpx.get(url).text
        answer = httpx.get(f"{url}/runs/{made.fingerprint}")
    assert answer.status_code == 500
    assert "is damaged" in answer.text
    assert "metrics.json" in answer.text


def test_head_and_numbers_of_any_length_are_answered(tmp_path):
    store = ArtifactStore(tmp_path)
    index = large_store(store, 12)
    with serving(store) as url:
        for path in ("/", "/static/site.css", f"/datasets/{index.fingerprint}"):
            answer = httpx.head(url + path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert httpx.head(f"{url}/nothing").status_code == 404
        for image in ("00000000000000000099999999", "0" * 5000, "9" * 5000, "\u0663", "-1"):
            assert httpx.get(f"{url}/search", params={"image": image}).status_code == 404, image[:30]
        page = f"{url}/datasets/{index.fingerprint}"
        for camera in ("0" * 5000, "\u0663", "1" * 30):
            assert httpx.get(page, params={"camera": camera}).status_code == 400, camera[:30]


@pytest.mark.parametrize(
    ("port", "host", "origin", "status"),
    [
        (80, "127.0.0.1", "http://127.0.0.1", 204),
        (80, "localhost:80", "http://localhost", 204),
        (80, "localhost", "http://127.0.0.1", 403),
        (80, "evil.example", "http://evil.example", 421),
        (8321, "127.0.0.1", "http://127.0.0.1", 421),
        (8321, "127.0.0.1:8321", "http://127.0.0.1", 403),
        (8321, "127.0.0.1:8321", "http://127.0.0.1:8321", 204),
    ],
)
def test_browsers_leave_out_the_default_port(port, host, origin, status):
    def answering(code):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": code, "headers": []})

        return app

    guard = Guard(answering(204), token="t", refuse=lambda code, _: answering(code))
    headers = [(b"host", host.encode()), (b"origin", origin.encode()), (b"x-csrf-token", b"t")]
    scope = {"type": "http", "method": "POST", "path": "/", "server": ("127.0.0.1", port), "headers": headers}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    assert sent[0]["status"] == status


def test_damaged_captions_do_not_hide_images(tmp_path):
    store = ArtifactStore(tmp_path)
    index = large_store(store, 12)
    (captions,) = store.root.glob("stages/caption/*/captions.parquet")
    captions.write_bytes(b"damaged")
    with serving(store) as url:
        for path in (f"/datasets/{index.fingerprint}", f"/datasets/{index.fingerprint}/images/0", "/search"):
            answer = httpx.get(url + path)
            assert answer.status_code == 200
            assert "Images are shown without captions: " in answer.text
            assert "captions.parquet cannot be read" in answer.text


def test_damaged_corrections_do_not_hide_images(tmp_path):
    store = ArtifactStore(tmp_path)
    index = large_store(store, 12)
    file = Corrections.open(store.root, "scgi").file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"damaged\n")
    with serving(store) as url:
        for path in (f"/datasets/{index.fingerprint}", f"/datasets/{index.fingerprint}/images/0", "/search"):
            answer = httpx.get(url + path)
            assert answer.status_code == 200
            assert "Images are shown without captions: " in answer.text
            assert "line 1 is damaged" in answer.text
