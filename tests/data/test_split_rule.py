"""The split by rule: deterministic, steady when identities are added, and one query per identity and camera."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.artifacts.fingerprint import digest_file
from data.columns.records import ImageRecord, Records
from data.datasets import DatasetConfig, load_dataset, scan_dataset
from data.errors import ConfigError
from data.index.stage import index
from data.readers.base import Scan
from data.readers.split_rule import split_by_identity
from tests.helpers.data_trees import market, put


def scan_of(records: list[ImageRecord]) -> Scan:
    return Scan(name="x", version="", root=Path("/x"), records=Records.of(records), rejected=[], notices=[], n_junk=0)


def people(count: int, cameras: int = 2, each: int = 3, first: int = 1) -> list[ImageRecord]:
    return [
        ImageRecord(path=f"{pid}/{camera}_{image}.jpg", split="gallery", pid=pid, camid=camera, label=f"person {pid}")
        for pid in range(first, first + count)
        for camera in range(cameras)
        for image in range(each)
    ]


def split(records: list[ImageRecord], seed: int = 0, train_fraction: float = 0.5) -> list[ImageRecord]:
    return split_by_identity(scan_of(records), seed=seed, train_fraction=train_fraction).records


def trained(records: list[ImageRecord]) -> set[str]:
    return {record.label for record in records if record.split == "train"}


def test_the_split_does_not_depend_on_the_order_of_files_or_numbers():
    records = people(20)
    found = split(records)
    assert split(records[::-1]) == found
    renumbered = split([replace(record, pid=record.pid + 100) for record in records])
    assert {r.path: r.split for r in renumbered} == {r.path: r.split for r in found}
    assert trained(split(records, seed=1)) != trained(found)
    assert [(r.split, r.path) for r in found] == sorted((r.split, r.path) for r in found)


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.01, 1), (0.3, 6), (0.5, 10), (0.99, 19), (1, 20)])
def test_the_fraction_is_kept_and_leaves_someone_on_either_side(fraction, count):
    assert len(trained(split(people(20), train_fraction=fraction))) == count


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(0, 99), st.floats(0, 1))
def test_another_identity_moves_at_most_one_other(count, seed, fraction):
    before = trained(split(people(count), seed, fraction))
    after = trained(split(people(count + 1), seed, fraction)) - {f"person {count + 1}"}
    assert len(before ^ after) <= 1


def test_one_query_per_identity_and_camera():
    for cameras in (1, 2, 5):
        records = split(people(9, cameras), train_fraction=0)
        queries = Counter((record.pid, record.camid) for record in records if record.split == "query")
        assert set(queries.values()) == {1}
        assert len(queries) == 9 * cameras


@settings(max_examples=200)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(0, 9))
def test_queries_keep_a_match_from_another_camera_where_there_is_one(sizes, seed):
    """sizes: images of one identity per camera."""
    records = [
        ImageRecord(path=f"{camera}_{image}.jpg", split="gallery", pid=1, camid=camera, label="a")
        for camera, size in enumerate(sizes)
        for image in range(size)
    ]
    found = defaultdict(list)
    for record in split(records, seed, 0):
        found[record.split].append(record.camid)
    assert found["gallery"]
    assert len(found["query"]) == len(set(found["query"])) >= len(sizes) - 1
    if len(sizes) > 1:
        assert all(set(found["gallery"]) - {camera} for camera in found["query"])


def test_distractors_and_junk_stay_in_the_gallery():
    extra = [ImageRecord(path=f"{pid}", split="gallery", pid=pid, camid=0) for pid in (0, -1)]
    records = split([*people(4), *extra], train_fraction=1)
    assert {(record.pid, record.split) for record in records if record.pid < 1} == {(0, "gallery"), (-1, "gallery")}
    zero = [ImageRecord(path=f"{n}", split="train", pid=0, camid=0) for n in range(2)]
    assert trained(split([*people(4), *zero], train_fraction=1)) == {"", *(f"person {pid}" for pid in range(1, 5))}


def test_any_reader_can_be_split_by_rule(tmp_path):
    own = load_dataset("market1501", market(tmp_path))
    found = scan_dataset(DatasetConfig(root=str(tmp_path), split="by_identity", train_fraction=0.25))
    assert {record.path for record in found.records} == {record.path for record in own}
    assert len({record.pid for record in found.records if record.split == "train"}) == 1
    assert found.version == "without junk by_identity seed=0 train_fraction=0.25"
    assert "one per identity and camera" in found.notices[-1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reader": "images", "split": "by_identity"}, "split: the reader images does not know identities to split"),
        ({"reader": "pku_reid", "train_fraction": 1}, "train_fraction: the split of pku_reid leaves identities on"),
        ({"reader": "market1501", "train_fraction": 0.2}, "or split=by_identity; remove it"),
        ({"reader": "images", "split_seed": 3}, "only with pku_reid, vehicleid, folders; remove it"),
        ({"reader": "market1501", "camera_pattern": "(a)"}, "camera_pattern: has no effect with the reader market1501"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options, told):
    reader = options.pop("reader")
    with pytest.raises(ConfigError) as error:
        load_dataset(reader, tmp_path, **options)
    assert told in str(error.value)


def test_the_identity_of_a_config_without_a_rule_is_that_of_earlier_versions():
    fields = DatasetConfig(reader="msmt17").identity()
    assert not {"split", "camera_pattern"} & fields.keys()
    assert fields["require_splits"] == ["train", "query", "gallery"]
    assert DatasetConfig(reader="msmt17", split="by_identity").identity()["split"] == "by_identity"


# The index of such a dataset


def test_the_index_writes_labels_and_the_split(store, tmp_path):
    put(tmp_path / "set", *(f"{name}/cam{n % 2}_{n}.jpg" for name in ("Bob", "Ann", "=Eve") for n in range(4)))
    config = DatasetConfig(reader="folders", root=str(tmp_path / "set"), camera_pattern=r"cam(\d)")
    outcome = index(store, config=config)
    rows = outcome.images.rows().to_pylist()
    assert {(row["label"], row["pid"]) for row in rows} == {("=Eve", 1), ("Ann", 2), ("Bob", 3)}
    with (outcome.made.ref.folder / "split.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["pid"], line["label"], line["cameras"]) for line in lines] == [
        ("1", "=Eve", "0 1"),
        ("2", "Ann", "0 1"),
        ("3", "Bob", "0 1"),
    ]
    for line in lines:
        counts = Counter(row["split"] for row in rows if row["label"] == line["label"])
        assert {split: int(line[split]) for split in ("train", "query", "gallery")} == {
            split: counts[split] for split in ("train", "query", "gallery")
        }
    (notice,) = outcome.found.notices
    assert notice == (
        "identities are split by rule (by_identity seed=0 train_fraction=0.5): 2 to train (8 images) and 1 to test (2 "
        "queries, one per identity and camera, and 2 gallery images). The index writes the list to split.csv"
    )


def test_an_unusable_image_is_not_drawn_as_a_query(store, tmp_path):
    root = tmp_path / "set"
    put(root, *(f"{name}/{n}.jpg" for name in "ab" for n in range(4)))
    config = DatasetConfig(reader="folders", root=str(root), train_fraction=0)
    (drawn,) = [record for record in scan_dataset(config).records if record.split == "query" and record.label == "a"]
    (root / drawn.path).write_bytes(b"")
    rows = index(store, config=config).images.rows("path", "split", "label").to_pylist()
    assert Counter((row["label"], row["split"]) for row in rows) == {
        ("a", "query"): 1,
        ("a", "gallery"): 2,
        ("b", "query"): 1,
        ("b", "gallery"): 3,
    }


def test_datasets_without_labels_or_rule_are_written_as_before(store, tmp_path):
    outcome = index(store, config=DatasetConfig(root=str(market(tmp_path / "set"))))
    assert "label" not in outcome.images.rows().column_names
    assert not (outcome.made.ref.folder / "split.csv").exists()


def test_a_label_is_part_of_the_hash_of_the_dataset(store, tmp_path):
    put(tmp_path / "set", "a/x.jpg", "b/x.jpg")
    config = DatasetConfig(reader="folders", root=str(tmp_path / "set"), train_fraction=1)
    first = index(store, config=config).found
    (tmp_path / "set" / "a").rename(tmp_path / "set" / "a2")
    assert index(store, config=config).found.dataset_hash != first.dataset_hash
    assert first.description["counts"]["train"] == {"images": 2, "identities": 2, "cameras": 0}


def test_images_alone_are_an_index(store, tmp_path):
    put(tmp_path / "set", "x.jpg", "deep/y.png")
    outcome = index(store, config=DatasetConfig(reader="images", root=str(tmp_path / "set")))
    assert outcome.images.rows("path", "split", "pid", "camid").to_pylist() == [
        {"path": path, "split": "gallery", "pid": 0, "camid": -1} for path in ("deep/y.png", "x.jpg")
    ]
    assert outcome.found.description["counts"]["gallery"] == {"images": 2, "identities": 0, "cameras": 0}


def test_a_label_cannot_imitate_the_rows_of_another_dataset(store, tmp_path):
    """The hash of a dataset digests its rows as lines of text, and a label may contain line breaks and NUL."""
    put(tmp_path, "a.jpg", "b.jpg")
    sha256 = digest_file(tmp_path / "b.jpg")

    def hash_of(name: str, paths: list[str], labels: list[str]) -> str:
        table = pa.table({"path": paths, "split": ["gallery"] * len(paths), "label": labels})
        pq.write_table(table, tmp_path / name)
        config = DatasetConfig(reader="manifest", root=str(tmp_path), manifest=str(tmp_path / name))
        return index(store, config=config).found.dataset_hash

    two = hash_of("two.parquet", ["a.jpg", "b.jpg"], ["x", "y"])
    imitated = f"x\ngallery\0b.jpg\0{2}\0{-1}\0{sha256}\0y"
    assert hash_of("one.parquet", ["a.jpg"], [imitated]) != two
