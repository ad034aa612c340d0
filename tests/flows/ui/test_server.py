"""The server of the page without a browser: its answers, its protection, its speed, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from PIL import Image

from data.artifacts.store import ArtifactStore
from data.errors import ConfigError
from flows.cli.app import main
from flows.ui.security import MOST_BYTES
from flows.ui.server import listen
from tests.helpers.places import REPO
from tests.helpers.ui_server import large_store, serving

pytestmark = pytest.mark.xdist_group("flow")


def test_the_first_page_lists_datasets_and_runs_with_their_scores(served, finished):
    text = served.get("/").text
    metrics = (finished[1]["evaluate"].artifact.folder / "metrics.json").read_text()
    best = max(float(value) for value in re.findall(r'"mAP": ([\d.]+)', metrics))
    assert f'<td class="num">{100 * best:.1f}</td>' in text
    assert "evaluate/" in text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?camera=x", "not a number"),
        ("?flag=nothing", "does not exist"),
        ("?captions=nothing", "may have been removed"),
        ("?page=x", "wrong value"),
    ],
)
def test_a_wrong_address_is_one_clear_sentence(served, query, words):
    answer = served.get(served.dataset + query)
    assert answer.status_code in (400, 404)
    assert words in re.search(r'role="alert">(.*?)</p>', answer.text)[1]
    assert "Traceback" not in answer.text


def test_text_of_the_address_and_of_captions_is_escaped(served, tmp_path):
    answer = served.get(served.dataset, params={"text": '"><script>alert(1)</script>'})
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    store = ArtifactStore(tmp_path)
    index = large_store(store, 20, "<b onclick=x>")
    with serving(store) as url:
        text = httpx.get(f"{url}/datasets/{index.fingerprint}").text
    assert "&lt;b onclick=x&gt; 1" in text
    assert "<b onclick" not in text


def test_only_this_page_may_ask(served):
    port = served.url.rsplit(":", 1)[1]
    assert served.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
        assert served.get("/", headers={"Host": host}).status_code == 421
    image = f"{served.dataset}/pictures/0/144"
    assert served.get(image, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert served.get(image, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.get("/", headers=link).status_code == 200
    frame = {**link, "Sec-Fetch-Dest": "iframe"}
    assert served.get("/", headers=frame).status_code == 403


def test_a_write_needs_the_origin_and_the_token_of_the_page(served):
    token = re.search(r'name="csrf-token" content="([^"]+)"', served.get("/").text)[1]
    good = {"Origin": served.url, "X-CSRF-Token": token}
    for headers in (
        {},
        {"Origin": served.url},
        {**good, "Origin": "http://evil.example"},
        {**good, "X-CSRF-Token": "x"},
    ):
        assert httpx.post(f"{served.url}/", headers=headers).status_code == 403
    assert httpx.post(f"{served.url}/", headers=good).status_code == 405, "allowed, but there is nothing to write"
    large = bytes(MOST_BYTES + 1)
    assert httpx.post(f"{served.url}/", headers=good, content=large).status_code == 413
    pieces = (bytes(1 << 20) for _ in range(1 + (MOST_BYTES >> 20)))  # without a declared length
    assert httpx.post(f"{served.url}/search/pictures", headers=good, content=pieces).status_code == 413


def test_every_answer_forbids_other_sources(served):
    for path in ("/", "/nothing", "/static/site.css", f"{served.dataset}/pictures/0/144"):
        headers = served.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    for path in ("/docs", "/openapi.json", "/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"):
        assert served.get(path).status_code == 404


def test_pictures_come_from_indexed_files_only(served):
    picture = served.get(f"{served.dataset}/pictures/0/144")
    assert picture.headers["content-type"] == "image/jpeg"
    assert "immutable" in picture.headers["cache-control"]
    for path in ("9999/144", "-1/144", "0/145", "x/144", "..%2f..%2fetc/144"):
        assert served.get(f"{served.dataset}/pictures/{path}").status_code in (400, 404)


def test_a_missing_folder_is_a_notice_and_can_be_named(served, tmp_path):
    store = ArtifactStore(tmp_path / "home")
    index = large_store(store, 12)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (30, 60)).save(folder / "000000.jpg")
    picture = f"/datasets/{index.fingerprint}/pictures/0/144"
    with serving(store) as url:
        assert "clip-scgi ui --images FOLDER" in httpx.get(f"{url}/datasets/{index.fingerprint}").text
        assert "folder not found" in httpx.get(url + picture).text
    with serving(store, tmp_path) as url:
        assert "clip-scgi ui --images FOLDER" not in httpx.get(f"{url}/datasets/{index.fingerprint}").text
        assert "changed" in httpx.get(url + picture).text, "the bytes are not those of the index"


def test_a_run_in_progress_and_a_damaged_artifact_are_named(tmp_path):
    store = ArtifactStore(tmp_path)
    index = large_store(store, 12)
    (store.folder("train", "f" * 32)).mkdir(parents=True)
    with serving(store) as url, store.lock("caption", "a" * 32):
        text = httpx.get(url).text
        assert f"In progress: caption-{'a' * 32}" in text
        assert f"train/{'f' * 32}" in text
        (index.folder / "images.parquet").write_bytes(b"damaged")
        answer = httpx.get(f"{url}/datasets/{index.fingerprint}")
    assert answer.status_code == 500
    assert re.search(r'role="alert">\S+images.parquet cannot be read', answer.text)


def test_a_page_of_a_hundred_thousand_images_takes_less_than_200_ms_of_processor_time(tmp_path):
    store = ArtifactStore(tmp_path)
    index = large_store(store, 100_000)
    with serving(store) as url, httpx.Client(timeout=60) as client:
        page = f"{url}/datasets/{index.fingerprint}"
        assert "100,000 of 100,000 images" in client.get(page).text
        for query in ("?page=900", "?text=red+coat&page=2", "?flag=dissent&gender=male&camera=3&split=query"):
            times = []
            for _ in range(7):
                started = time.process_time()
                assert client.get(page + query).status_code == 200
                times.append(time.process_time() - started)
            assert min(times) < 0.2, f"{query}: {min(times):.3f} s"


def test_a_taken_port_is_replaced_unless_it_was_asked_for():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with listen(port, exactly=False) as other:
            assert other.getsockname()[0] == "127.0.0.1"
            assert other.getsockname()[1] != port
        with pytest.raises(ConfigError, match=f"port {port} cannot be used"):
            listen(port, exactly=True)


def test_what_cannot_be_served_is_one_message(tmp_path, capsys):
    assert main(["ui", "--home", str(tmp_path)]) == 1
    assert "run a recipe first" in capsys.readouterr().err
    assert main(["ui", "--home", str(tmp_path), "--images", str(tmp_path / "no")]) == 1
    assert "is not a folder" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_cleanly(served):
    words = [sys.executable, "-m", "flows.cli.app", "ui", "--home", str(served.home), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"}
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    url = re.match(r"http://127\.0\.0\.1:\d+", started.stdout.readline())[0]
    with httpx.Client() as client:
        assert client.get(url).status_code == 200  # the connection stays open
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=240)
    assert (started.returncode, out, err) == (0, "", "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
