"""``clip-scgi embed``: folders, manifests and recipes as sources, the model by name, and a stop in the middle."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.store import ArtifactStore
from data.columns.records import ImageRecord, Records
from data.columns.rejected import RejectedRows
from data.index.facts import Facts, FileFacts
from data.index.survey import Survey
from data.synthetic.world import WorldConfig, write_market1501
from flows.cli.app import main
from flows.cli.retrieval.sources import images_of
from reid import Embedder
from reid.config.train import TrainConfig
from reid.embedding.images import ImageFile
from tests.helpers.places import REPO, working_copy
from tests.helpers.shards import people_in_shards
from tests.helpers.small_models import write_model

ON_CPU = ["--set", "evaluate.device=cpu"]


@pytest.fixture(scope="module")
def base(module_folder):
    """A home with one model, used by the recipe demo; a folder of images; and a manifest of some of them."""
    base = module_folder("embed")
    store = ArtifactStore(base / "home")
    store.record_use(write_model(store), dataset="demo", recipe="demo")
    market = write_market1501(
        base / "market", WorldConfig(seed=3, train_identities=2, test_identities=2, cameras=2, images_per_camera=2)
    )
    photos = base / "photos"
    rows = []
    for number, path in enumerate(sorted(market.glob("*/*.jpg"))):
        place = photos / ("day1" if number % 2 else "day2/late") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        pid, camera = re.match(r"(\d+)_c(\d)", path.name).groups()
        rows.append(
            {"path": place.relative_to(photos).as_posix(), "split": "gallery", "pid": int(pid), "camid": int(camera)}
        )
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    pd.DataFrame(rows[:5]).to_csv(photos / "mine.csv", index=False)
    return base


@pytest.fixture
def place(base, tmp_path, monkeypatch):
    """The same in a folder that the test may change, which is the working folder."""
    return working_copy(base, tmp_path, monkeypatch, columns=200)


def test_a_folder_of_images_is_embedded_once(place, capsys):
    assert main(["embed", "photos", "--model", "demo", *ON_CPU]) == 0
    shown = capsys.readouterr().out
    frame = pd.read_parquet("features.parquet")
    n_images = len(list((place / "photos").rglob("*.jpg"))) - 1
    assert len(frame) == n_images
    assert f"{n_images} images, mode image, " in shown
    assert f"; {n_images} embedded now; model train/" in shown
    assert "2 files rejected; features.rejected.parquet says why" in shown
    assert pd.read_parquet("features.rejected.parquet")["reason"].tolist() == ["truncated", "not_an_image"]
    assert frame[["split", "pid", "camid", "label"]].isna().all(axis=None)
    embedder = Embedder.load("demo", device="cpu")
    expected = embedder.embed_images([place / "photos" / path for path in frame["path"]])
    np.testing.assert_allclose(np.stack(frame["embedding"]), expected, rtol=1e-4, atol=1e-5)

    shutil.copyfile(place / "photos" / frame["path"][0], place / "photos" / "copy.jpg")
    image = next((place / "photos/day1").glob("*.jpg"))
    image.unlink()
    assert main(["embed", "photos", "--model", embedder.fingerprint[:8], *ON_CPU]) == 0
    assert f"{n_images} images, mode image, {embedder.width():,} values each; 0 embedded now" in capsys.readouterr().out


def test_a_manifest_gives_labels(place, capsys):
    assert main(["embed", "photos/mine.csv", "--model", "demo", "-o", "out/f.parquet", *ON_CPU]) == 0
    frame = pd.read_parquet("out/f.parquet").sort_values("path", ignore_index=True)
    wanted = pd.read_csv("photos/mine.csv").sort_values("path", ignore_index=True)
    for name in ("path", "pid", "camid", "split"):
        assert frame[name].tolist() == wanted[name].tolist()
    assert "rejected;" not in capsys.readouterr().out


@pytest.mark.parametrize("reader", ["images", "manifest"])
def test_the_columns_of_a_survey_are_its_images(reader):
    digests = [digest_bytes(name.encode()) for name in "abcd"]
    people = [("train", 7, 2, "Ann"), ("gallery", 0, -1, ""), ("query", -1, 0, "Bo"), ("train", 3, 5, "Ann")]
    records = [
        ImageRecord(path=f"{place}.jpg", split=split, pid=pid, camid=camid, label=label)
        for place, (split, pid, camid, label) in enumerate(people)
    ]
    found = Survey(
        root=Path("/photos"),
        records=Records.of(records),
        facts=FileFacts.of([Facts(1, 2, 3, digest, 4, 5, "", 0) for digest in digests]),
        rejected=RejectedRows.of([]),
        split_by_rule=False,
        description={"reader": reader, "version": "1"},
        n_read=0,
        n_decoded=0,
        n_unsettled=0,
    )
    labels = people if reader == "manifest" else [(None, None, camid, label) for _, _, camid, label in people]
    assert list(images_of(found)) == [
        ImageFile(f"{place}.jpg", digest, split, pid, None if camid == -1 else camid, label or None)
        for place, (digest, (split, pid, camid, label)) in enumerate(zip(digests, labels, strict=True))
    ]


def test_shards_are_embedded_with_their_labels(place, capsys):
    people_in_shards(place / "shards")
    refused = ["embed", "shards/train-000000.tar", "--model", "demo", *ON_CPU]
    assert main(refused) == 1
    assert "a tar file; give its folder, with --set data.reader=webdataset" in capsys.readouterr().err
    assert main(["embed", "shards", "--model", "demo", "--set", "data.reader=webdataset", *ON_CPU]) == 0
    frame = pd.read_parquet("features.parquet")
    assert sorted(frame["pid"].unique()) == [1, 2, 3, 4]
    assert "train-000000.tar/1_1.jpg" in set(frame["path"])


def test_a_recipe_is_its_images_and_a_model_of_another_recipe_may_embed_them(place, capsys):
    small = ["synthetic.seed=9", "synthetic.train_identities=2", "synthetic.test_identities=2", "synthetic.cameras=2"]
    settings = [part for text in small for part in ("--set", text)]
    assert main(["embed", "demo", "--mode", "joint", *settings, *ON_CPU]) == 1
    assert "embed: recipe demo has no trained model here for its images and settings" in capsys.readouterr().err
    assert main(["embed", "demo", "--model", "demo", "--mode", "joint", *settings, *ON_CPU]) == 0
    assert "mode joint" in capsys.readouterr().out
    frame = pd.read_parquet("features.parquet")
    assert set(frame["split"]) == {"train", "query", "gallery"}
    assert frame["pid"].nunique() >= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "--model", "demo"], "'nothing' is neither a folder, nor a manifest file, nor a recipe"),
        (["photos"], "embed: name the model, such as --model demo"),
        (["photos", "--model", "market1501"], "'market1501' does not name a trained model"),
        (["photos", "--model", "demo", "--mode", "both"], "no mode 'both'; give one of image, fused, joint"),
        (["photos/broken.jpg", "--model", "demo"], "broken.jpg"),
        (["photos", "--model", "demo", "-o", "photos/mine.csv"], "mine.csv exists and is not a file of embeddings"),
        (["demo", "--model", "demo"], "demo is a recipe, and a file or folder here; write ./demo"),
        (["empty", "--model", "demo"], "has no usable images"),
    ],
)
def test_what_cannot_work_is_one_message(place, capsys, words, message):
    (place / "empty").mkdir()
    if words[0] == "demo":
        (place / "demo").mkdir()
    assert main(["embed", *words, *ON_CPU]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (place / "features.parquet").exists()


def test_a_model_with_camera_embeddings_refuses_a_folder_without_cameras(place, capsys):
    store = ArtifactStore(place / "home")
    model = write_model(store, TrainConfig(method="clip_baseline", device="cpu", sie=1.0))
    assert main(["embed", "photos", "--model", model.fingerprint, *ON_CPU]) == 1
    assert re.search(r"the camera is unknown for \d+ images, such as .*train\.sie=0", capsys.readouterr().err)
    assert main(["embed", "photos/mine.csv", "--model", model.fingerprint, *ON_CPU]) == 0


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background


def test_ctrl_c_keeps_what_is_embedded(place):
    """Many copies that differ in one trailing byte: enough work to be stopped in the middle."""
    source = next((place / "photos/day1").glob("*.jpg")).read_bytes()
    many = place / "many"
    many.mkdir()
    for number in range(12_000):
        (many / f"{number:04d}.jpg").write_bytes(source + number.to_bytes(2, "big"))
    command = [sys.executable, "-m", "flows.cli.app", "embed", str(many), "--model", "demo", "-o", str(place / "f.pq")]
    command += [*ON_CPU, "--set", "evaluate.batch_size=8"]
    keys = place / "f.pq.parts/keys.txt"
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_ctrl_c) as process:  # noqa: PLW1509
        deadline = time.monotonic() + 240
        while not (keys.exists() and keys.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=240)[1]
    assert process.returncode == 130, error
    assert "run the same command again to continue" in error
    assert not (place / "f.pq").exists()
    kept = len(keys.read_text().splitlines())
    assert 0 < kept < 12_000
    for path in list(many.iterdir())[300:]:
        path.unlink()
    assert main(["embed", str(many), "--model", "demo", "-o", str(place / "f.pq"), *ON_CPU]) == 0
    frame = pd.read_parquet(place / "f.pq")
    rows = np.stack(frame["embedding"])
    assert len(frame) == 300
    np.testing.assert_allclose(rows, np.repeat(rows[:1], 300, axis=0), rtol=1e-4, atol=1e-5)
