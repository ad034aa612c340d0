"""The controls of a study: captions of other people, and captions of the true attributes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.attributes.parse import parse_caption
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.schemas import CAPTIONS
from data.slots import SLOTS
from data.synthetic.world import WorldConfig, write_market1501
from flows.study.controls import TRUTH, ShuffleConfig, ShuffleStage, TrueStage, exchange
from tests.helpers.reid_worlds import write_captions
from tests.helpers.stages import run_on

CONTENT = [name for name in CAPTIONS.names if name not in ("image_path", "image_sha256", "split", "pid", "camid")]


@pytest.fixture(scope="module")
def world(module_folder):
    """A small synthetic dataset, indexed: (store, index outcome)."""
    folder = module_folder("world")
    root = write_market1501(
        folder / "images", WorldConfig(seed=9, train_identities=5, test_identities=2, images_per_camera=2, cameras=2)
    )
    store = ArtifactStore(folder / "home")
    return store, index(store, config=DatasetConfig(root=str(root)))


def captions_of(store, outcome, text_of=lambda row: f"A person seen as {row['path']}."):
    rows = pq.read_table(outcome.made.ref.folder / "images.parquet").to_pylist()
    return write_captions(store, rows, text_of)


def frame(ref) -> pd.DataFrame:
    return pd.read_parquet(ref.folder / "captions.parquet")


@given(
    counts=st.lists(st.integers(1, 7), min_size=2, max_size=12).filter(lambda counts: 2 * max(counts) <= sum(counts)),
    seed=st.integers(0, 10_000),
    unit=st.sampled_from(["identity", "image"]),
)
def test_no_image_keeps_a_caption_of_its_identity(counts, seed, unit):
    pids = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 - 1, counts))
    source = exchange(pids, seed=seed, unit=unit)
    assert sorted(source) == list(range(len(pids))), "every caption is used once"
    assert (pids[source] != pids).all()
    assert (exchange(pids, seed=seed, unit=unit) == source).all()


@given(people=st.integers(2, 9), images=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_equally_many_images_get_the_captions_of_one_other_person(people, images, seed):
    pids = np.tile(np.arange(people), images)
    source = exchange(pids, seed=seed, unit="identity")
    for pid in range(people):
        assert len(set(pids[source[pids == pid]])) == 1


def test_by_image_captions_of_one_person_come_from_many():
    pids = np.repeat(np.arange(20), 6)
    source = exchange(pids, seed=1, unit="image")
    assert np.mean([len(set(pids[source[pids == pid]])) for pid in range(20)]) > 4


def test_seeds_differ():
    pids = np.repeat(np.arange(20), 6)
    assert (exchange(pids, seed=1, unit="identity") != exchange(pids, seed=2, unit="identity")).any()


@pytest.mark.parametrize("pids", [[1], [1, 1, 1, 2, 2], [5, 5]])
def test_a_majority_cannot_be_shuffled(pids):
    with pytest.raises(DataError, match="cannot be shuffled"):
        exchange(np.array(pids), seed=0, unit="identity")


def test_shuffled_rows_move_as_a_whole_and_only_in_training(world):
    store, outcome = world
    captions = captions_of(store, outcome)
    made = ShuffleStage(captions=captions, config=ShuffleConfig(seed=3)).make(run_on(store, outcome.made.ref))
    before, after = frame(captions), frame(made.ref)
    assert pq.read_schema(made.ref.folder / "captions.parquet").equals(CAPTIONS)
    assert after[["image_path", "image_sha256", "split", "pid", "camid"]].equals(
        before[["image_path", "image_sha256", "split", "pid", "camid"]]
    )
    train = before["split"] == "train"
    assert after[~train].equals(before[~train])
    assert sorted(after["caption"]) == sorted(before["caption"])
    owner = before.set_index("caption")
    for row in after[train].to_dict("records"):
        source = owner.loc[row["caption"]]
        assert source["pid"] != row["pid"]
        assert source["split"] == "train"
        assert all((pd.isna(row[name]) and pd.isna(source[name])) or row[name] == source[name] for name in CONTENT[1:])


def test_shuffling_is_cached_by_seed_unit_and_captions(world):
    store, outcome = world
    captions = captions_of(store, outcome)
    config = ShuffleConfig(seed=5)
    first = ShuffleStage(captions=captions, config=config).make(run_on(store, outcome.made.ref))
    again = ShuffleStage(captions=captions, config=config).make(run_on(store, outcome.made.ref))
    assert again.cached
    assert again.ref == first.ref
    others = [
        ShuffleStage(captions=captions, config=ShuffleConfig(seed=6)),
        ShuffleStage(captions=captions, config=ShuffleConfig(seed=5, unit="image")),
        ShuffleStage(captions=captions_of(store, outcome, lambda _: "A man."), config=config),
    ]
    run = run_on(store, outcome.made.ref)
    assert len({first.ref.fingerprint, *(stage.make(run).ref.fingerprint for stage in others)}) == 4


def test_true_captions_name_the_visible_attributes_only(world):
    store, outcome = world
    made = TrueStage().make(run_on(store, outcome.made.ref, outcome.images.root))
    assert pq.read_schema(made.ref.folder / "captions.parquet").equals(CAPTIONS)
    captions = frame(made.ref)
    truth = pd.read_parquet(outcome.images.root / TRUTH).set_index("path")
    images = pd.read_parquet(outcome.made.ref.folder / "images.parquet")
    assert captions["image_path"].tolist() == images["path"].tolist()
    assert captions["image_sha256"].tolist() == images["sha256"].tolist()
    for row in captions.to_dict("records"):
        told, known = parse_caption(row["caption"]), truth.loc[row["image_path"]]
        for slot in SLOTS:
            expected = known[slot] if known[f"visible_{slot}"] and known[slot] != "none" else None
            assert told[slot] == expected
            assert row[f"attr_{slot}"] == expected or (expected is None and pd.isna(row[f"attr_{slot}"]))
    for column in ("template_id", "model_id", "model_revision", "captioner_fingerprint"):
        assert captions[column].nunique() == 1
    assert TrueStage().make(run_on(store, outcome.made.ref, outcome.images.root)).cached


def test_true_captions_refuse_images_that_are_not_synthetic(world, tmp_path):
    store, outcome = world
    table = pq.read_table(outcome.images.root / TRUTH)
    pq.write_table(table.slice(1), tmp_path / TRUTH)
    with pytest.raises(DataError, match="lacks 1 image"):
        TrueStage().make(run_on(store, outcome.made.ref, tmp_path))
