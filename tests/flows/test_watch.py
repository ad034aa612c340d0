"""Watching datasets: what counts as a change, what counts as incomplete, and what is announced again."""

from __future__ import annotations

import os
import shutil
import time

import pyarrow as pa
import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ClipScgiError
from data.index.stage import index
from flows.deploy.watch import Memory, look_at, resource_id, watched_config
from flows.deploy.watched_images import Counts, WatchedImages
from flows.recipes import build_recipe
from tests.helpers.data_trees import market, picture, put

LATER = 1000.0
TRAIN = "bounding_box_train/0002_c1s1_000451_03.jpg"
pytestmark = pytest.mark.xdist_group("flow")


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


@pytest.fixture
def config(tmp_path) -> DatasetConfig:
    return DatasetConfig(name="people", root=str(market(tmp_path / "images")))


def _look(store, config, **options):
    # Pretend that it is much later, so that everything in the folder is old.
    return look_at(store, dataset="people", config=config, now=time.time() + LATER, **options)


def test_a_dataset_that_no_run_has_indexed_is_only_remembered(store, config):
    first = _look(store, config)
    assert first.status == "new"
    assert not first.is_news
    assert _look(store, config).status == "unchanged"


def test_counts_match_the_changes_in_the_folder(store, config, tmp_path):
    before = _look(store, config)
    root = tmp_path / "images"
    put(root, "bounding_box_train/0002_c4s1_000999_01.jpg", "query/0001_c6s1_001051_00.jpg", first_seed=50)
    (root / "bounding_box_test/0001_c2s1_000301_02.jpg").unlink()
    (root / TRAIN).write_bytes(picture(99))
    look = _look(store, config)
    assert look.status == "changed"
    assert look.counts == Counts(added=2, removed=1, changed=1)
    assert look.old == before.new != look.new
    assert look.payload()["dataset"] == "people"


def test_a_change_is_announced_until_a_run_has_indexed_it(store, config, tmp_path):
    _look(store, config)
    put(tmp_path / "images", "bounding_box_train/0002_c4s1_000999_01.jpg", first_seed=50)
    assert _look(store, config).status == "changed"
    again = _look(store, config)
    assert again.status == "announced again"
    assert again.is_news
    assert again.counts.added == 1
    index(store, config=config)
    assert _look(store, config).status == "unchanged"
    assert _look(store, config).status == "unchanged"


def test_the_first_look_compares_with_the_newest_index(store, config, tmp_path):
    index(store, config=config)
    shutil.copytree(store.root, tmp_path / "kept")
    put(tmp_path / "images", "bounding_box_train/0002_c4s1_000999_01.jpg", first_seed=50)
    look = _look(store, config)
    assert (look.status, look.counts) == ("changed", Counts(added=1))
    # Nothing changed since that index, so there is nothing to announce.
    (tmp_path / "images/bounding_box_train/0002_c4s1_000999_01.jpg").unlink()
    assert _look(ArtifactStore(tmp_path / "kept"), config).status == "unchanged"


def test_a_copy_in_progress_is_not_settled(store, config, tmp_path):
    assert look_at(store, dataset="people", config=config, settle_seconds=60).status == "not settled"
    assert not Memory(store, "people").exists()
    _look(store, config)
    put(tmp_path / "images", "bounding_box_train/0002_c4s1_000999_01.jpg", first_seed=50)
    assert look_at(store, dataset="people", config=config, settle_seconds=60).status == "not settled"
    assert _look(store, config).status == "changed"


def test_a_partial_file_and_a_removal_keep_a_dataset_unsettled(store, config, tmp_path):
    _look(store, config)
    root = tmp_path / "images"
    time.sleep(1.2)
    settle = 0.6
    assert look_at(store, dataset="people", config=config, settle_seconds=settle).status == "unchanged"
    (root / "bounding_box_train/0002_c4s1_000999_01.jpg").write_bytes(picture(5)[:40])  # rejected, and still young
    assert look_at(store, dataset="people", config=config, settle_seconds=settle).status == "not settled"
    time.sleep(1.2)
    (root / TRAIN).unlink()  # leaves no young file, only a young folder
    assert look_at(store, dataset="people", config=config, settle_seconds=settle).status == "not settled"


def test_times_in_the_future_do_not_stop_the_watch(store, config, tmp_path, monkeypatch):
    """After the clock was set back, every file is from the future; ctime cannot be set, so the test moves the clock."""
    _look(store, config)
    put(tmp_path / "images", "bounding_box_train/0002_c4s1_000999_01.jpg", first_seed=50)
    earlier = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: earlier)
    assert look_at(store, dataset="people", config=config, settle_seconds=60).status == "changed"


def test_a_touched_but_equal_file_is_not_a_change(store, config, tmp_path):
    _look(store, config)
    os.utime(tmp_path / "images" / TRAIN)
    assert _look(store, config).status == "unchanged"


def test_a_deleted_dataset_is_a_clear_failure_and_its_memory_stays(store, config, tmp_path):
    _look(store, config)
    state = Memory(store, "people").state.read_bytes()
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ClipScgiError, match="images"):
        _look(store, config)
    assert Memory(store, "people").state.read_bytes() == state


@pytest.mark.parametrize("damage", ["state", "rows", "gone"])
def test_a_damaged_memory_is_replaced(store, config, damage):
    _look(store, config)
    memory = Memory(store, "people")
    rows = next(memory.state.parent.glob("*.parquet"))
    match damage:
        case "state":
            memory.state.write_text("{")
        case "rows":
            rows.write_bytes(b"PAR1")
        case _:
            rows.unlink()
    assert _look(store, config).status == "new"
    assert _look(store, config).status == "unchanged"


def test_similar_names_are_remembered_separately(store):
    names = ["a b", "a_b", "a/b", "ab"]
    assert len({Memory(store, name).state for name in names}) == len(names)
    assert all(Memory(store, name).state.parent == store.root / "watch" for name in names)


def test_synthetic_images_are_watched_once_they_are_drawn(store):
    from flows.worlds import world_folder

    recipe = build_recipe("demo")
    assert watched_config(store, recipe) is None
    folder = world_folder(store, recipe.synthetic)
    folder.mkdir(parents=True)
    assert watched_config(store, recipe).root == str(folder)
    elsewhere = build_recipe("demo", ["data.root=/data/x"])
    assert watched_config(store, elsewhere).root == "/data/x"


def test_the_trigger_expects_the_emitted_event():
    from flows.deploy.deployments import change_trigger
    from flows.deploy.watch import CHANGED

    trigger = change_trigger("people")
    assert trigger.expect == {CHANGED}
    assert trigger.match.matches({"prefect.resource.id": resource_id("people")})
    assert not trigger.match.matches({"prefect.resource.id": resource_id("people2")})


def test_changes_of_many_images_are_counted_by_path():
    def state(*rows):
        columns = dict(zip(("path", "split", "pid", "camid", "sha256"), zip(*rows, strict=True), strict=True))
        return WatchedImages.of([pa.table({name: list(column) for name, column in columns.items()})])

    rows = [(f"{number}.jpg", "train", number, 1, f"{number:064x}") for number in range(6)]
    other = [*rows[1:3], ("3.jpg", "train", 4, 1, rows[3][4]), (*rows[4][:4], "a" * 64), ("9.jpg", *rows[5][1:])]
    before, after = state(*rows), state(*other)
    assert before.changes_to(after) == Counts(added=1, removed=2, changed=2)
    assert (before.changes_to(before), after.changes_to(after)) == (Counts(), Counts())
