"""The server engine: the same captions as in this process, and every way in which a server can fail."""

from __future__ import annotations

import inspect
import json
import threading
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from captioning import reading
from captioning.captioner import TINY_FOLDER, identify
from captioning.config import CaptionConfig, ServerConfig
from captioning.engines.llava import Engine
from captioning.engines.server_client import RefusalError
from captioning.framing import frame
from captioning.prompts.templates import LLAVA_SYSTEM
from captioning.stage import worker as stage_work
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.errors import ConfigError, DataError, RetryableError
from data.images.decode import open_rgb
from data.schemas import CAPTIONS
from tests.helpers.caption_worlds import captions_folder, captions_of, draw, index, written
from tests.helpers.chat_server import TEXT, image_of, parts_of, serving
from tests.helpers.mini_llava import SIDE, save_mini_llava
from tests.helpers.stages import caption

MEAN = ServerConfig().image_mean


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def asking(url, *, revision=None, regenerate=None, template="scgi", max_new_tokens=None, **server) -> CaptionConfig:
    """A config for the server at `url`, with short limits."""
    settings = {"concurrency": 3, "timeout": 5, "attempts": 3, "backoff": 0.01, "image_side": SIDE} | server
    return CaptionConfig(
        engine="openai",
        model="served/llava",
        revision=revision,
        template=template,
        max_new_tokens=max_new_tokens,
        regenerate=regenerate or {},
        server=ServerConfig(url=url, **settings),
        batch_size=4,
        workers=2,
    )


def run(store, root, config):
    return caption(store, images=index(store, root), images_root=root, config=config)


def framed(path) -> Image.Image:
    return frame(open_rgb(path), "pad", (SIDE, SIDE), MEAN)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


class Served:
    """A LLaVA behind the API, prompted through its chat template."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.prompts: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, image, request):
        text = "".join(part["text"] for part in parts_of(request) if part["type"] == "text")
        system = "".join(f"{m['content']} " for m in request["messages"] if m["role"] == "system")
        with self._lock:
            self.prompts.add(f"{system}USER: <image>\n{text} ASSISTANT:")
            (reply,) = self.engine.reply([image])
        return {
            "text": reply.text,
            "tokens": reply.n_tokens,
            "finish": "length" if reply.truncated else "stop",
        }


@pytest.mark.parametrize("which", ["random", "embedded"])
def test_a_llava_on_a_server_writes_the_same_as_in_this_process(store, tmp_path, which):
    folder = save_mini_llava(tmp_path / "mini") if which == "random" else TINY_FOLDER
    model = str(folder) if which == "random" else "tiny"
    local = CaptionConfig(model=model, dtype="float32", max_new_tokens=40, device="cpu", batch_size=4)
    engine = Engine.load(local)
    served = Served(engine)
    root = draw(tmp_path / "people", 7)
    with serving(answer=served) as server:
        config = asking(server.url, max_new_tokens=40, image_side=engine.llava.family.side)
        outcome = run(store, root, config)
    assert outcome.note == "7 captions generated, 0 reused"
    assert served.prompts == {local.prompt_template.prompt()}
    there, here = captions_of(outcome.made), captions_of(run(store, root, local).made)
    told = ["image_path", "caption", "raw_text", "status", "n_tokens", "truncated", "n_replies"]
    pd.testing.assert_frame_equal(there[told], here[told])
    assert list(there.columns) == CAPTIONS.names
    assert there[["dtype", "quantization", "batch_size"]].isna().all().all()
    assert set(there["model_id"] + "@" + there["model_revision"]) == {"served/llava@unpinned"}


def test_the_request_is_greedy_and_holds_the_framed_image(store, tmp_path):
    path = tmp_path / "system.toml"
    path.write_text(f'id = "mine"\ninstruction = "Describe."\nsystem = "{LLAVA_SYSTEM}"\nmax_new_tokens = 9')
    root = draw(tmp_path / "people", 1)
    with serving() as server:
        run(store, root, asking(server.url, template=str(path)))
    (request,) = server.requests
    assert same(image_of(request), framed(root / "0000.png"))
    assert [part["type"] for part in parts_of(request)] == ["image_url", "text"]
    assert parts_of(request)[1]["text"] == "Describe."
    assert request["messages"][0] == {"role": "system", "content": LLAVA_SYSTEM}
    del request["messages"]
    assert request == {"model": "served/llava", "max_tokens": 9, "temperature": 0}


def test_the_number_of_concurrent_requests_is_the_allowed_one(store, tmp_path):
    six = threading.Barrier(6, timeout=240)  # no response before six requests

    def slowly(_, __):
        six.wait()
        return {"text": TEXT}

    root = draw(tmp_path / "people", 24)
    with serving(answer=slowly) as server:
        outcome = run(store, root, asking(server.url, concurrency=6, timeout=100))
    assert outcome.generated == len(server.requests) == 24
    assert server.busiest == 6


def test_the_fingerprint_depends_on_the_model_and_not_on_the_connection(store, tmp_path):
    def key(**changes) -> str:
        return identify(asking(**({"url": "http://a:1/v1"} | changes)), store.memo).fingerprint

    same = {key(), key(url="https://b/v1"), key(concurrency=9), key(timeout=1, attempts=9, backoff=3)}
    same.add(key(key_variable="SOME_KEY"))
    assert len(same) == 1
    others = [
        {"revision": "abc"},
        {"template": "free"},
        {"max_new_tokens": 5},
        {"image_side": 336},
        {"image_mean": (0.5, 0.5, 0.5)},
        {"regenerate": {"times": 1}},
    ]
    keys = {key(**change) for change in others}
    keys.add(identify(CaptionConfig(model="served/llava"), store.memo).fingerprint)
    assert len(same | keys) == len(others) + 2


# Faults of one request


FAULTS = {
    "error_500": "HTTP 500: .*CUDA error.* (3 attempts)",
    "hang": "no response within 2 s (3 attempts)",
    "trickle": "no response within 2 s (3 attempts)",
    "endless": "a response of more than 8 MiB (3 attempts)",
    "drop": "RemoteProtocolError",
    "html": "a response of type text/html that is not the API's JSON: <!DOCTYPE html>",
    "half_json": "a response of type application/json that is not the API's JSON",
    "no_choices": "not the API's JSON",
    "no_text": "not the API's JSON",
    "deep_json": "not the API's JSON",
}


ENDLESS = ("hang", "trickle")
"""Faults that take the whole time limit, so two images of one batch have them at the same time."""


@pytest.mark.parametrize("faults", [ENDLESS, *((fault,) for fault in FAULTS if fault not in ENDLESS)], ids="-".join)
def test_an_image_without_a_response_has_a_row_and_is_retried_by_the_next_run(store, tmp_path, faults):
    root = draw(tmp_path / "people", 6)
    names = sorted(path.name for path in root.iterdir())
    unlucky = {name: (framed(root / name), fault) for name, fault in zip(names[2:], faults, strict=False)}
    images = index(store, root)

    def fault_of(image, _):
        return next((fault for pixels, fault in unlucky.values() if same(image, pixels)), None)

    with serving(fault=fault_of) as server:
        # Only for faults without a response; a busy machine needs more time for the others.
        config = asking(server.url, timeout=2 if faults == ENDLESS else 60)
        outcome = caption(store, images=images, images_root=root, config=config)
        frame_of = captions_of(outcome.made).set_index("image_path")
        assert frame_of["status"].to_dict() == {name: "server_error" if name in unlucky else "ok" for name in names}
        for name, (pixels, fault) in unlucky.items():
            for words in FAULTS[fault].split(".*"):
                assert words in frame_of.loc[name, "error"]
            assert pd.isna(frame_of.loc[name, "caption"])
            assert sum(same(image_of(request), pixels) for request in server.requests) == 3
        failed = len(faults)
        assert outcome.note == f"{6 - failed} captions generated, 0 reused, {failed} failed"
    with serving() as healed:
        outcome = caption(store, images=images, images_root=root, config=asking(healed.url))
        assert outcome.note == f"{failed} caption{'s' if failed > 1 else ''} generated, {6 - failed} reused"
        assert len(healed.requests) == failed
    assert caption(store, images=images, images_root=root, config=asking("http://127.0.0.1:9")).made.cached


@pytest.mark.parametrize("fault", ["error_500", "html", "drop"])
def test_a_temporary_fault_loses_nothing(store, tmp_path, fault):
    root = draw(tmp_path / "people", 5)
    with serving(fault=lambda _, before: fault if before < 2 else None) as server:
        outcome = run(store, root, asking(server.url))
    assert outcome.note == "5 captions generated, 0 reused"
    assert len(server.requests) == 15


def test_the_pause_is_at_least_the_servers_retry_after(store, tmp_path):
    root = draw(tmp_path / "people", 1)
    with serving(fault=lambda _, before: None if before else "busy_429") as server:
        started = time.monotonic()
        run(store, root, asking(server.url))
        assert time.monotonic() - started >= 1
    assert len(server.requests) == 2


def test_an_unreadable_image_is_not_sent(store, tmp_path):
    root = draw(tmp_path / "people", 3)
    (root / "0001.png").write_bytes(b"no image")
    with serving() as server:
        rows = captions_of(run(store, root, asking(server.url)).made)
    assert rows["status"].tolist() == ["ok", "image_error", "ok"]
    assert rows["error"].tolist()[1] == "not_an_image"
    assert len(server.requests) == 2


# Faults of the server


def test_a_failing_server_stops_the_run_and_earlier_captions_are_kept(store, tmp_path):
    root = draw(tmp_path / "people", 60)
    images = index(store, root)
    seen: set[bytes] = set()

    def break_down(image, _):
        seen.add(image.tobytes())
        return "error_500" if len(seen) > 20 else None

    with serving(fault=break_down) as server:
        config = asking(server.url)
        with pytest.raises(RetryableError, match=r"did not respond to the last 8 images: HTTP 500.*are kept"):
            caption(store, images=images, images_root=root, config=config)
        assert len(server.requests) < 20 + 3 * (8 + 3 + 3)
    kept = written(captions_folder(store, config))
    assert 17 <= len(kept) <= 20
    with serving() as healed:
        outcome = caption(store, images=images, images_root=root, config=asking(healed.url))
    assert (outcome.generated, outcome.reused) == (60 - len(kept), len(kept))
    assert sorted(written(captions_folder(store, config))) == sorted(set(captions_of(outcome.made)["image_sha256"]))


def test_a_server_that_responds_to_no_image_is_not_reported_as_a_bad_folder(store, tmp_path):
    root = draw(tmp_path / "people", 2)
    with serving(fault=lambda *_: "error_500") as server, pytest.raises(RetryableError, match="none of the 2 images"):
        run(store, root, asking(server.url))
    with serving() as server, pytest.raises(DataError, match=r"none of the 2 images can be read"):
        caption(store, images=index(store, root), images_root=tmp_path / "elsewhere", config=asking(server.url))


def test_the_error_for_a_missing_server_gives_its_address(store, tmp_path):
    root = draw(tmp_path / "people", 1)
    with pytest.raises(RetryableError, match=r"http://127\.0\.0\.1:9/v1: .*ConnectError"):
        run(store, root, asking("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize("fault", ["html", "hang", "error_500"])
def test_a_wrong_address_is_detected_before_an_image_is_sent(store, tmp_path, fault):
    root = draw(tmp_path / "people", 1)
    with serving(models_fault=fault) as server:
        with pytest.raises(RetryableError, match=r"caption\.server\.url.* no usable response.*/v1"):
            run(store, root, asking(server.url, timeout=0.3))
        assert not server.requests


def test_a_server_that_does_not_list_its_models_is_used(store, tmp_path):
    with serving(models_fault="absent_404") as server:
        assert run(store, draw(tmp_path / "people", 2), asking(server.url)).generated == 2


def test_a_model_that_is_not_listed_is_reported_and_requested(store, tmp_path, caplog):
    root = draw(tmp_path / "people", 2)
    with serving(model="other/model") as server:
        assert run(store, root, asking(server.url)).generated == 2
    assert "lists other/model, not caption.model=served/llava" in caplog.text
    told = pytest.raises(RefusalError, match=r"HTTP 404.*that the server has caption\.model")
    with serving(model="other/model", fault=lambda *_: "absent_404") as server, told:
        run(store, root, asking(server.url, revision="new"))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("bad_400", "HTTP 400: .*max_tokens is too large"),
        ("absent_404", r"HTTP 404.*caption\.server\.url"),
        ("moved_302", "HTTP 302"),
    ],
)
def test_a_rejected_request_stops_the_run_at_once(store, tmp_path, fault, told, monkeypatch):
    streams = []

    def watched(*args, **options):
        streams.append(reading.read_ahead(*args, **options))
        return streams[-1]

    monkeypatch.setattr(stage_work, "read_ahead", watched)
    root = draw(tmp_path / "people", 4)
    with serving(fault=lambda *_: fault) as server:
        with pytest.raises(RefusalError, match=told):
            run(store, root, asking(server.url, attempts=20))
        assert len(server.requests) <= 4
    # Left to the garbage collector, its threads once blocked the start of another thread forever.
    assert [inspect.getgeneratorstate(stream) for stream in streams] == [inspect.GEN_CLOSED]


# The key


def test_the_key_comes_from_the_environment_and_stays_out_of_every_file(store, tmp_path, monkeypatch, caplog):
    secret = "sk-1234567890abcdef"
    monkeypatch.setenv("MY_KEY", secret)
    root = draw(tmp_path / "people", 4)
    unlucky = framed(root / "0002.png")

    def fault(image, before):
        return "error_500" if same(image, unlucky) else None

    with serving(fault=fault) as server:
        config = asking(server.url, key_variable="MY_KEY")
        outcome = run(store, root, config)
    assert outcome.generated == 3
    assert server.keys == {f"Bearer {secret}"}
    assert secret not in config.model_dump_json() + caplog.text
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_the_key_is_masked_in_messages_of_the_server(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1234567890abcdef")
    with serving(models_fault="key_401") as server, pytest.raises(RefusalError) as caught:
        run(store, draw(tmp_path / "people", 1), asking(server.url, key_variable="MY_KEY"))
    assert "sk-1234567890abcdef" not in str(caught.value)
    assert "bad key: Bearer ***" in str(caught.value)
    assert "key_variable" in str(caught.value)


def test_a_key_that_is_not_set_is_reported(store, tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="key_variable=MY_KEY: this environment variable is not set"):
        run(store, draw(tmp_path / "people", 1), asking("http://127.0.0.1:9/v1", key_variable="MY_KEY"))


# Settings


def test_config_problems_are_listed_together():
    values = {"engine": "openai", "decoding": "slots", "dtype": "float16"}
    with pytest.raises(ConfigError) as caught:
        build_config(CaptionConfig, values, "caption")
    for wanted in (
        "model: engine openai needs",
        "decoding: engine openai cannot",
        "dtype: with engine openai the server",
    ):
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "llava.example/v1"}, "address such as"),
        ({"url": "http://me:secret@llava.example/v1"}, "a user, password"),
        ({"url": "http://llava.example/v1?key=secret"}, "a user, password"),
        ({"image_mean": (0.5, 128, 0.5)}, "fractions"),
        ({"timeout": 0}, "timeout"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_bad_server_settings_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told) as caught:
        build_config(CaptionConfig, {"engine": "openai", "model": "a/b", "server": settings}, "caption")
    if "url" in settings and "secret" in settings["url"]:
        assert "secret" not in str(caught.value)


def test_a_server_needs_no_device():
    assert asking("http://a/v1").local_device == "cpu"
    assert CaptionConfig(device="cuda:1").local_device == "cuda:1"


def test_a_re_prompt_is_sampled_with_a_seed(store, tmp_path):
    def answer(_, request):
        return {"text": "shirt " * 9 if "seed" not in request else TEXT}

    root = draw(tmp_path / "people", 3)
    with serving(answer=answer) as server:
        config = asking(server.url, regenerate={"times": 2, "temperature": 0.5})
        rows = captions_of(run(store, root, config).made)
    drawn = [request for request in server.requests if "seed" in request]
    assert len(server.requests) == 6
    assert {request["temperature"] for request in drawn} == {0.5}
    assert len({request["seed"] for request in drawn}) == 3
    assert set(rows["raw_text"]) == {TEXT}
    assert set(rows["first_text"]) == {"shirt " * 9}
    assert rows["n_replies"].tolist() == [2, 2, 2]


def test_the_default_mean_of_the_server_is_that_of_the_embedded_model():
    """CLIP's mean, with which the processor of LLaVA-1.5 normalizes."""
    settings = json.loads((TINY_FOLDER / "processor_config.json").read_text())
    assert np.allclose(settings["image_processor"]["image_mean"], MEAN)
