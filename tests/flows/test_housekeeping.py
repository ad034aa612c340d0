"""Inventory and garbage collection of a hand-made artifact root with known dependencies."""

from __future__ import annotations

import errno
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from captioning.captioner import Captioner
from captioning.prompts.replies import Reply
from captioning.store.rows import CaptionRow
from captioning.store.store import CaptionStore
from data.artifacts.fingerprint import digest
from data.artifacts.housekeeping import collect, find_leftovers, plan_gc, verify
from data.artifacts.inventory import in_progress, take_inventory
from data.artifacts.store import SIDECAR, ArtifactStore
from data.errors import ClipScgiError, RetryableError
from data.files import read_json, write_json, write_table
from data.schemas import IMAGES
from flows.cli import artifacts as commands_artifacts
from flows.cli.app import main
from flows.cli.artifacts import collect_garbage, list_artifacts
from tests.helpers.stages import make_artifact

LONG_AGO = 100  # days


def _make(store: ArtifactStore, stage: str, ingredients: dict, age_days: float = LONG_AGO, content: str = ""):
    def produce(folder):
        if stage == "index":
            row = {"path": "a.jpg", "split": "train", "pid": 1, "camid": 1, "sha256": content}
            table = pa.Table.from_pylist([row | {"size": 1, "width": 1, "height": 1}], schema=IMAGES)
            write_table(folder / "images.parquet", table, IMAGES)
        else:
            (folder / "file").write_text(content or digest(ingredients))

    ref = make_artifact(store, stage, ingredients, produce).ref
    moment = datetime.now(UTC) - timedelta(days=age_days)
    sidecar = read_json(ref.folder / SIDECAR)
    write_json(ref.folder / SIDECAR, sidecar | {"created": moment.isoformat()})
    os.utime(ref.folder, (moment.timestamp(), moment.timestamp()))
    return ref


def _run(store: ArtifactStore, recipe: str, version: int, age_days: float = LONG_AGO) -> dict:
    """Make the artifacts of one run: index, caption, train, report, and the by-products of its training."""
    image = digest([recipe, version])
    weights = {"files": {"w": digest("weights of " + recipe)}}
    images = _make(store, "index", {"description": {"name": recipe, "v": version}}, age_days, image)
    caption = _make(store, "caption", {"images": images.content}, age_days)
    pixels = _make(store, "pixels", {"order": digest([image])}, age_days)
    text = _make(store, "text", {"captions": digest(version), "weights": weights}, age_days)
    train = _make(store, "train", {"images": images.content, "captions": caption.content, "weights": weights}, age_days)
    inputs = {
        role: {"fingerprint": ref.fingerprint, "content": ref.content}
        for role, ref in (("images", images), ("captions", caption), ("model", train))
    }
    page = _make(store, "report", {"inputs": inputs, "recipe": {"name": recipe}}, age_days)
    return {"index": images, "caption": caption, "pixels": pixels, "text": text, "train": train, "report": page}


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "root")


def _keys(refs) -> set[str]:
    return {f"{ref.stage}/{ref.fingerprint}" for ref in refs}


def test_the_inventory_has_the_dependencies(store):
    run = _run(store, "demo", 1)
    inventory = take_inventory(store)
    by_stage = {entry.stage: entry for entry in inventory.entries}
    assert _keys(run.values()) == {entry.key for entry in inventory.entries}
    assert {entry.stage for entry in inventory.uses(by_stage["report"])} == {"index", "caption", "train"}
    assert {entry.stage for entry in inventory.used_by(by_stage["caption"])} == {"train", "report"}
    assert inventory.uses(by_stage["index"]) == []
    assert by_stage["report"].label == by_stage["index"].label == "demo"
    assert by_stage["index"].size == sum(path.stat().st_size for path in run["index"].folder.iterdir())


def test_gc_keeps_the_newest_runs_of_each_recipe_with_their_inputs(store):
    old = [_run(store, "demo", version, LONG_AGO - version) for version in range(3)]
    other = _run(store, "other", 9, 2 * LONG_AGO)
    plan = plan_gc(store, keep_runs=1, days=30)
    kept = _keys([*old[2].values(), *other.values()])
    # The text features share their weights with the run that stays, so all three stay with it.
    kept |= _keys([run["text"] for run in old])
    assert {entry.key for entry in plan.artifacts} == {entry.key for entry in take_inventory(store).entries} - kept
    assert plan.kept == len(kept)
    collect(store, plan)
    assert {entry.key for entry in take_inventory(store).entries} == kept
    for key in kept:
        stage, fingerprint = key.split("/")
        assert store.problems(stage, fingerprint) == []
    assert plan_gc(store, keep_runs=1, days=30).artifacts == []


def test_a_young_artifact_stays_with_its_inputs(store):
    images = _make(store, "index", {"description": {"name": "x"}}, LONG_AGO, digest("image"))
    caption = _make(store, "caption", {"images": images.content}, age_days=1)
    _make(store, "audit", {"captions": digest("of another")}, LONG_AGO)
    plan = plan_gc(store, keep_runs=0, days=30)
    assert [entry.stage for entry in plan.artifacts] == ["audit"]
    assert caption.folder.is_dir()


def test_use_makes_an_artifact_young_again(store):
    ref = _make(store, "caption", {"n": 1})
    assert len(plan_gc(store, keep_runs=0, days=30).artifacts) == 1
    os.utime(ref.folder)
    assert plan_gc(store, keep_runs=0, days=30).artifacts == []


def test_a_damaged_artifact_that_a_kept_run_names_stays(store):
    run = _run(store, "demo", 1)
    (run["caption"].folder / SIDECAR).write_text("{")
    os.utime(run["caption"].folder, (1, 1))
    assert plan_gc(store, keep_runs=1, days=1).artifacts == []
    assert {entry.stage: entry.state for entry in take_inventory(store).entries}["caption"] == "damaged"


def test_nothing_is_removed_while_a_stage_is_at_work(store):
    ref = _make(store, "caption", {"n": 1})
    plan = plan_gc(store, keep_runs=0, days=0)
    with store.lock("train", "0123"):
        assert in_progress(store) == ["train-0123"]
        with pytest.raises(RetryableError, match="train-0123 is being made"):
            collect(store, plan)
    assert ref.folder.is_dir()
    assert collect(store, plan) == [ref.folder]
    assert not any((store.root / "stages" / "caption").iterdir())


def test_caption_shards_are_never_removed(store):
    shard = store.root / "captions" / digest("captioner")[:32] / "part-0.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"a caption")
    os.utime(shard, (1, 1))
    collect(store, plan_gc(store, keep_runs=0, days=0))
    assert shard.read_bytes() == b"a caption"


def test_leftovers_of_killed_stages_go_when_old_and_idle(store):
    fingerprint = digest("killed")[:32]
    folders = [
        store.scratch("train", fingerprint),
        store.scratch("train", f"{fingerprint}.rank1"),
        store.root / "stages" / "train" / f".{fingerprint}.abc",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "checkpoint").write_bytes(b"12345")
    assert {item.folder for item in find_leftovers(store)} == set(folders)
    assert {item.fingerprint for item in find_leftovers(store)} == {fingerprint}
    assert plan_gc(store, keep_runs=0, days=1).leftovers == []
    plan = plan_gc(store, keep_runs=0, days=1, now=datetime.now(UTC) + timedelta(days=2))
    assert plan.size == 15
    with store.lock("train", fingerprint):
        assert find_leftovers(store) == []
    assert set(collect(store, plan)) == set(folders)


def test_verify_names_damaged_artifacts(store):
    run = _run(store, "demo", 1)
    (run["train"].folder / "file").write_text("something else")
    inventory = take_inventory(store)
    problems = verify(inventory, list(inventory.entries))
    assert list(problems) == [f"train/{run['train'].fingerprint}"]


def test_a_name_must_match_one_artifact(store):
    run = _run(store, "demo", 1)
    inventory = take_inventory(store)
    assert inventory.find(run["train"].fingerprint[:10]).stage == "train"
    assert inventory.find(f"train/{run['train'].fingerprint[:3]}").stage == "train"
    with pytest.raises(ClipScgiError, match="matches 6 artifacts"):
        inventory.find("")
    with pytest.raises(ClipScgiError, match="artifacts ls"):
        inventory.find("nothing")


def test_the_list_shows_dataset_recipe_date_and_score_in_100_columns(store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run = _run(store, "demo", 1)
    rows = [{"model": "untrained", "mode": "image", "mAP": 0.1}, {"model": "trained", "mode": "fused", "mAP": 0.2}]
    results = {"results": [*rows, {"model": "trained", "mode": "image", "mAP": 0.67891}]}
    evaluation = make_artifact(
        store, "evaluate", {"model": run["train"].content}, lambda f: write_json(f / "metrics.json", results)
    )
    control = _make(store, "caption_control", {"n": 1}, 1)
    for ref in (evaluation.ref, control):
        store.record_use(ref, dataset="market1501-small", recipe="market1501_clip_reid")
    store.record_use(evaluation.ref, dataset="people", recipe="demo")
    commands_artifacts.list_artifacts(store.root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["artifact", "dataset", "recipe", "made", "size", "mAP"]
    assert max(map(len, lines[:-1])) <= 100
    cells = {line.split()[0]: line.split() for line in lines[3:-1] if line.strip()}
    key = f"evaluate/{evaluation.ref.fingerprint[:8]}"
    assert cells[key][1:3] == ["people", "demo"], "the last use"
    assert cells[key][-1] == "67.9"
    assert cells[f"caption_control/{control.fingerprint[:8]}"][1:3] == ["market1501-small", "market1501_clip_reid"]
    assert cells[f"train/{run['train'].fingerprint[:8]}"][1:3] == ["-", "-"]
    commands_artifacts.show_artifact(store.root, evaluation.ref.fingerprint)
    shown = json.loads(capsys.readouterr().out)
    assert shown["mAP"] == "67.9"
    assert shown["recipes"][-1] == {"dataset": "people", "recipe": "demo"}
    sidecar = evaluation.ref.folder / "artifact.json"
    sidecar.write_text("{")
    (control.folder / "file").unlink()
    commands_artifacts.list_artifacts(store.root, stage="evaluate")
    assert "damaged" in capsys.readouterr().out


def test_the_commands_print_and_return_a_status(store, capsys):
    run = _run(store, "demo", 1)

    def call(*words: str) -> tuple[int, str]:
        status = main(["artifacts", "--home", str(store.root), *words])
        return status, capsys.readouterr().out

    status, text = call("ls")
    assert status == 0
    assert f"train/{run['train'].fingerprint[:8]} " in text
    assert (datetime.now(UTC) - timedelta(days=LONG_AGO)).astimezone().strftime("%Y-%m-%d") in text
    assert "6 artifacts" in text
    status, text = call("show", run["train"].fingerprint)
    assert json.loads(text)["used_by"] == [f"report/{run['report'].fingerprint}"]
    assert call("verify") == (0, "6 artifacts, 0 damaged\n")
    (run["caption"].folder / "file").unlink()
    status, text = call("verify", f"caption/{run['caption'].fingerprint}")
    assert status == 1
    assert "file is missing" in text
    os.utime(run["caption"].folder, (1, 1))  # the deletion made it young
    status, text = call("gc", "--keep", "0")
    assert status == 0
    assert "would remove 6 folders" in text
    assert run["train"].folder.is_dir()
    status, text = call("gc", "--keep", "0", "--delete")
    assert "removed 6 of 6" in text
    assert not run["train"].folder.exists()


def test_an_absent_root_is_empty(tmp_path):
    store = ArtifactStore(tmp_path / "absent")
    assert take_inventory(store).entries == ()
    plan = plan_gc(store, keep_runs=1, days=1)
    assert collect(store, plan) == []


def test_an_artifact_that_a_run_found_is_no_longer_old(tmp_path):
    store = ArtifactStore(tmp_path)
    made = make_artifact(store, "audit", {"n": 1}, lambda folder: (folder / "a").write_bytes(b"1")).ref
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
    os.utime(made.folder, (long_ago, long_ago))
    sidecar = made.folder / SIDECAR
    sidecar.write_text(re.sub(r'"created": *"[^"]+"', '"created": "2020-01-01T00:00:00+00:00"', sidecar.read_text()))
    assert [entry.stage for entry in plan_gc(store, keep_runs=1, days=30).artifacts] == ["audit"]
    store.record_use(made, dataset="people", recipe="demo")
    assert plan_gc(store, keep_runs=1, days=30).artifacts == []


def test_a_root_that_cannot_be_written_can_be_listed(store, capsys, monkeypatch):
    _run(store, "demo", 1)
    assert list((store.root / "locks").iterdir())
    opened = Path.open

    def read_only(self, mode="r", *rest, **options):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", read_only)
    commands_artifacts.list_artifacts(store.root)
    commands_artifacts.collect_garbage(store.root, keep=5, days=0.0, delete=False)
    assert "6 artifacts" in capsys.readouterr().out


def test_ls_counts_captions_and_gc_compacts_them(tmp_path, capsys):
    captions = CaptionStore(tmp_path, Captioner(fingerprint="f" * 32, model_id="m", model_revision="", ingredients={}))
    for number in range(3):
        captions.append([CaptionRow.of(f"{number:064x}", Reply(text="A man.", n_tokens=2, truncated=False))])
    collect_garbage(tmp_path, keep=1, days=1, delete=False)
    assert len(captions.shards()) == 3
    collect_garbage(tmp_path, keep=1, days=1, delete=True)
    assert len(captions.shards()) == 1
    list_artifacts(tmp_path)
    assert "0 artifacts, 0 B; 3 captions, " in capsys.readouterr().out
