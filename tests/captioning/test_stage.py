"""The caption stage captions every image once, and only missing ones, even if it is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from captioning.attributes.parse import parse_caption
from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.prompts.cleaning import CleaningConfig
from captioning.stage.stage import CaptionStage
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.errors import ConfigError, DataError, WeightsError
from data.schemas import CAPTIONS
from data.slots import SLOTS
from tests.helpers.caption_child import caption_in_child
from tests.helpers.caption_worlds import captions_folder, captions_of, draw, index, written
from tests.helpers.fresh_processes import preloaded
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.places import REPO
from tests.helpers.stages import caption, run_on


@pytest.fixture(scope="module")
def model(module_folder):
    return save_mini_llava(module_folder("mini") / "llava")


@pytest.fixture
def config(model):
    return CaptionConfig(model=str(model), dtype="float32", max_new_tokens=4, batch_size=4, workers=2, device="cpu")


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "home")


def run(store, root, config):
    return caption(store, images=index(store, root), images_root=root, config=config)


def test_every_image_has_its_row_with_provenance(store, tmp_path, config, model):
    root = draw(tmp_path / "people", 10)
    seen = []
    outcome = caption(
        store,
        images=index(store, root),
        images_root=root,
        config=config,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    table = pq.read_table(Path(outcome.made.ref.path) / "captions.parquet")
    assert table.schema.equals(CAPTIONS, check_metadata=True)
    frame = table.to_pandas()
    assert frame["image_path"].tolist() == [f"{i:04d}.png" for i in range(10)]
    assert frame["pid"].tolist() == [i // 4 + 1 for i in range(10)]
    assert set(frame["status"]) == {"truncated"}
    assert set(frame["model_id"]) == {"llava"}
    assert set(frame["captioner_fingerprint"]) == {identify(config, store.memo).fingerprint}
    assert set(frame["batch_size"]) == {4, 2}
    assert frame["n_tokens"].tolist() == [4] * 10
    assert outcome.note == "10 captions generated, 0 reused"
    assert seen[-1] == (10, 10)


def test_a_second_run_is_found_and_names_the_same_artifact(store, tmp_path, config):
    root = draw(tmp_path / "people", 4)
    first = run(store, root, config).made
    again = run(store, root, config.model_copy(update={"batch_size": 1, "workers": 1}))
    assert again.made.cached
    assert again.note == ""
    assert again.made.ref == first.ref
    assert CaptionStage(config=config).plan(run_on(store, index(store, root))).fingerprint == first.ref.fingerprint


def test_one_image_added_is_one_caption_generated(store, tmp_path, config):
    root = draw(tmp_path / "people", 8)
    before = captions_of(run(store, root, config).made)
    draw(root, 1, start=8)
    outcome = run(store, root, config)
    assert outcome.note == "1 caption generated, 8 reused"
    pd.testing.assert_frame_equal(captions_of(outcome.made).iloc[:8], before)


def test_cleaning_changes_the_caption_alone_and_generates_nothing(store, tmp_path, config):
    root = draw(tmp_path / "people", 6)
    slots = config.model_copy(update={"decoding": "slots", "max_new_tokens": None})
    raw = captions_of(run(store, root, slots).made)
    confident = raw[[f"conf_{slot}" for slot in SLOTS]]
    assert confident.notna().all().all()
    assert (confident <= 0).all().all()
    limit = float(np.exp(confident["conf_upper_color"].median()))
    strict = slots.model_copy(update={"cleaning": CleaningConfig(drop_below=limit)})
    outcome = run(store, root, strict)
    assert (outcome.generated, outcome.reused) == (0, 6)
    clean = captions_of(outcome.made)
    assert clean["raw_text"].tolist() == raw["raw_text"].tolist()
    for _, row in clean.iterrows():
        told = parse_caption(row["caption"])
        for slot in SLOTS:
            sure = row[f"conf_{slot}"] >= np.log(limit)
            attribute = row[f"attr_{slot}"]
            assert told[slot] == (attribute if sure and isinstance(attribute, str) else None)
    assert clean["caption"].tolist() != raw["caption"].tolist()


def test_equal_files_are_captioned_once(store, tmp_path, config):
    root = draw(tmp_path / "people", 3)
    shutil.copy(root / "0000.png", root / "0007.png")
    outcome = run(store, root, config)
    assert outcome.generated == 3
    frame = captions_of(outcome.made).set_index("image_path")
    assert len(frame) == 4
    assert frame.loc["0007.png", "raw_text"] == frame.loc["0000.png", "raw_text"]


def test_a_damaged_shard_captions_only_its_images_again(store, tmp_path, config):
    root = draw(tmp_path / "people", 4)
    run(store, root, config)
    draw(root, 3, start=4)
    first = run(store, root, config)
    folder = captions_folder(store, config)
    shards = sorted(folder.glob("part-*.parquet"), key=lambda path: pq.read_metadata(path).num_rows)
    assert [pq.read_metadata(path).num_rows for path in shards] == [3, 4]
    content = bytearray(shards[0].read_bytes())
    content[60] ^= 1
    shards[0].write_bytes(content)
    shutil.rmtree(first.made.ref.path)
    outcome = run(store, root, config)
    assert (outcome.generated, outcome.reused) == (3, 4)
    assert outcome.made.ref.content == first.made.ref.content


def test_a_changed_or_missing_image_has_a_row_and_is_retried_by_the_next_run(store, tmp_path, config):
    root = draw(tmp_path / "people", 6)
    images = index(store, root)
    original = {name: (root / name).read_bytes() for name in ("0001.png", "0002.png", "0003.png")}
    (root / "0001.png").write_bytes((root / "0005.png").read_bytes())
    (root / "0002.png").unlink()
    outcome = caption(store, images=images, images_root=root, config=config)
    frame = captions_of(outcome.made).set_index("image_path")
    assert frame["status"].value_counts().to_dict() == {"truncated": 4, "image_error": 2}
    assert frame.loc[["0001.png", "0002.png"], "error"].tolist() == ["changed", "missing"]
    assert frame.loc[["0001.png", "0002.png"], "caption"].isna().all()
    assert outcome.note == "4 captions generated, 0 reused, 2 failed"
    for name, content in original.items():
        (root / name).write_bytes(content)
    outcome = caption(store, images=images, images_root=root, config=config)
    assert outcome.note == "2 captions generated, 4 reused"
    assert "image_error" not in set(captions_of(outcome.made)["status"])
    assert caption(store, images=images, images_root=root, config=config).made.cached


def test_a_wrong_folder_is_named(store, tmp_path, config):
    images = index(store, draw(tmp_path / "people", 3))
    with pytest.raises(DataError, match=r"none of the 3 images .*elsewhere: missing \(3\)"):
        caption(store, images=images, images_root=tmp_path / "elsewhere", config=config)


def test_paths_that_leave_the_root_are_not_read(store, tmp_path, config):
    root = draw(tmp_path / "people", 2)
    secret = draw(tmp_path / "secret", 1, start=9)
    (root / "0005.png").symlink_to(secret / "0009.png")
    frame = captions_of(run(store, root, config).made).set_index("image_path")
    assert frame.loc["0005.png", "error"] == "outside_root"


def test_missing_weights_stop_before_anything_is_read(store, tmp_path, config):
    root = draw(tmp_path / "people", 1)
    with pytest.raises(WeightsError, match="does not exist"):
        run(store, root, config.model_copy(update={"model": str(tmp_path / "absent")}))


def test_the_fingerprint_covers_everything_that_changes_a_caption(store, config, model, tmp_path):
    def key(**changes) -> str:
        return identify(CaptionConfig(**(config.model_dump() | changes)), store.memo).fingerprint

    moved = shutil.copytree(model, tmp_path / "moved")
    (moved / "README.md").write_text("about")
    same = {key(), key(batch_size=1), key(device="auto"), key(workers=9), key(model=str(moved))}
    assert len(same) == 1
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other = [
        {"framing": "stretch"},
        {"template": "free"},
        {"dtype": "bfloat16"},
        {"quantization": "4bit"},
        {"max_new_tokens": 5},
        {"model": str(moved)},
        {"model": "some/hub-id"},
        {"model": "some/hub-id", "revision": "v2"},
    ]
    keys = [key(**change) for change in other]
    assert len({*same, *keys}) == 1 + len(other)


def test_another_wording_in_the_same_template_file_is_another_captioner(store, config, tmp_path):
    path = tmp_path / "mine.toml"
    keys = []
    for instruction in ("Describe the person.", "Describe the person!"):
        path.write_text(f'id = "mine"\ninstruction = "{instruction}"')
        keys.append(identify(CaptionConfig(**(config.model_dump() | {"template": str(path)})), store.memo).fingerprint)
    assert keys[0] != keys[1]


def test_config_problems_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        build_config(CaptionConfig, {"batch_size": 0, "framing": "crop", "template": "nope", "color": 1}, "caption")
    for wanted in ("batch_size", "framing", "unknown template 'nope'", "color: no such setting"):
        assert wanted in str(caught.value)
    with pytest.raises(ConfigError, match="only hub ids have a revision"):
        build_config(CaptionConfig, {"revision": "main"}, "caption")


def test_a_found_artifact_loads_no_model_library(store, tmp_path, config):
    root = draw(tmp_path / "people", 2)
    images = index(store, root)
    caption(store, images=images, images_root=root, config=config)
    script = f"""
import sys
from pathlib import Path
from captioning.config import CaptionConfig
from data.artifacts.store import ArtifactRef, ArtifactStore
from tests.helpers.stages import caption
outcome = caption(ArtifactStore(Path({str(store.root)!r})), images=ArtifactRef(**{images.to_json()!r}),
    images_root=Path({str(root)!r}), config=CaptionConfig.model_validate_json({config.model_dump_json()!r}))
assert outcome.made.cached
heavy = {{"torch", "transformers", "open_clip", "prefect"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPO)


def test_killed_at_random_moments_every_image_is_there_once(store, tmp_path, config, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # for the imports of the fork server
    root = draw(tmp_path / "people", 40)
    images = index(store, root)
    context = preloaded("tests.helpers.caption_child")  # torch and transformers are imported once
    arguments = (str(store.root), images.to_json(), str(root), config.model_dump_json())
    rng = np.random.default_rng(1)
    folder = captions_folder(store, config)
    kept = []
    for _ in range(4):
        child = context.Process(target=caption_in_child, args=arguments)
        child.start()
        wanted = len(kept) + int(rng.integers(0, 2))  # die before or after the next shard, at any point
        deadline = time.monotonic() + 30
        while len(list(folder.glob("part-*"))) < wanted and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(float(rng.uniform(0, 0.1)))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        found = sorted(path.name for path in folder.glob("part-*"))
        assert set(kept) <= set(found)
        kept = found
    outcome = caption(store, images=images, images_root=root, config=config)
    frame = captions_of(outcome.made)
    assert frame["image_path"].tolist() == sorted(path.name for path in root.iterdir())
    assert outcome.generated + outcome.reused == 40
    assert not (folder / "quarantine").exists()
    assert len(written(folder)) == len(set(written(folder))) == 40
