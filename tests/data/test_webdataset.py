"""Datasets in tar shards: labels, splits, what is rejected, what is read again, and images read in place."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest

from data.artifacts.fingerprint import digest_bytes
from data.artifacts.housekeeping import collect, plan_gc
from data.artifacts.store import ArtifactStore
from data.config import build_config
from data.datasets import DatasetConfig, load_dataset
from data.errors import ClipScgiError, ConfigError, DataError, RejectedRow, RetryableError
from data.images.decode import read_bytes
from data.images.root import find_root
from data.index.stage import index, survey
from data.people import UNKNOWN_CAMERA
from data.readers.webdataset import tables
from data.readers.webdataset.find import find_shards
from data.sources import shards
from data.sources.blocks import open_object
from data.sources.places import file_of, is_file
from data.sources.tar import members
from data.stages.images import IndexedImages
from tests.helpers.data_trees import picture, put, settle
from tests.helpers.shards import people_in_shards, put_shard, sample, tar_of
from tests.helpers.small_disk import small_disk
from tests.helpers.stores import copy_tree

TRAIN, GALLERY = "train-000000.tar", "gallery-000000.tar"


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path):
    return people_in_shards(tmp_path / "set")


@pytest.fixture
def streamed(monkeypatch):
    """Return the list of the shards that are read as a stream from now on."""
    opened = []

    def open_shard(shard, stamp):
        opened.append(shard.rpartition("/")[2])
        return shards.open_shard(shard, stamp)

    monkeypatch.setattr(tables, "open_shard", open_shard)
    return opened


def config_of(root, **options):
    return DatasetConfig(reader="webdataset", root=str(root), **options)


def found_in(store, root, **options):
    return index(store, config=config_of(root, **options)).found


def labels_of(found):
    return {record.path: (record.split, record.pid, record.camid) for record in found.records}


def reasons_of(found):
    return {row.path: row.reason for row in found.rejected}


# Labels


def test_labels_come_from_json_and_splits_from_the_names_of_shards(store, root):
    found = found_in(store, root)
    assert labels_of(found) == {
        "train-000000.tar/1_1.jpg": ("train", 1, 1),
        "train-000000.tar/1_2.jpg": ("train", 1, 2),
        "train-000001.tar/2_1.jpg": ("train", 2, 1),
        "train-000001.tar/2_2.jpg": ("train", 2, 2),
        "query-000000.tar/q/3.jpg": ("query", 3, 1),
        "query-000000.tar/q/4.jpg": ("query", 4, 1),
        "gallery-000000.tar/g/3_2.jpg": ("gallery", 3, 2),
        "gallery-000000.tar/g/3_3.jpg": ("gallery", 3, 3),
        "gallery-000000.tar/g/4_2.jpg": ("gallery", 4, 2),
        "gallery-000000.tar/g/4_3.jpg": ("gallery", 4, 3),
    }
    assert (found.rejected, found.notices) == ([], ())
    assert load_dataset("webdataset", root) == found.records


def test_images_keep_their_digests_when_they_move_into_shards(store, root, tmp_path):
    there = {
        path.partition(".tar/")[2]: fact for path, fact in index(store, config=config_of(root)).images.digests().items()
    }
    folder = tmp_path / "folder"
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as archive:
            archive.extractall(folder, filter="data")
    here = index(store, config=DatasetConfig(reader="images", root=str(folder))).images.digests()
    assert here == there
    assert all(digest_bytes((folder / path).read_bytes()) == sha256 for path, sha256 in there.items())


def test_fields_with_other_names_and_members_beside_the_image(store, tmp_path):
    for number in (1, 2):
        members = {**sample(f"a/{number}.x", number), f"{number}.cls": f"{number}\n".encode()}
        members |= {f"{number}.jpg": picture(number), f"{number}.txt": f"A person, number {number}.".encode()}
        members |= {f"{number}.json": json.dumps({"cam": "left", "set": "Train", "pid": 77}).encode()}
        put_shard(tmp_path / "set", f"{number}.tar", members)
    settle()
    options = {"pid_field": "cls", "camid_field": "cam", "split_field": "set", "require_splits": ("train",)}
    found = found_in(store, tmp_path / "set", **options)
    assert labels_of(found) == {"1.tar/1.jpg": ("train", 1, 1), "2.tar/2.jpg": ("train", 2, 1)}
    assert [record.sentences for record in found.records] == [("A person, number 1.",), ("A person, number 2.",)]
    assert found.notices == (
        "2 members of the shards not read, by ending: 2 x.jpg",
        "2 samples without an image, such as 1.tar/a/1",
    )


def test_a_list_of_sentences_and_text_as_identity(store, tmp_path):
    one = sample("1", 1, pid="anna", caption=["A woman.", "  She  wears a coat. ", ""])
    put_shard(tmp_path, "train-0.tar", one, sample("2", 2, pid="Émile", caption=[]), sample("3", 3, pid=-1))
    found = found_in(store, tmp_path, sentences_field="caption", require_splits=("train",))
    assert [(record.label, record.pid, record.sentences) for record in found.records] == [
        ("anna", 1, ("A woman.", "She wears a coat.")),
        ("Émile", 2, ()),
    ]
    assert found.description["junk_left_out"] == 1
    assert found.records[0].camid == UNKNOWN_CAMERA


def test_labels_from_names(store, tmp_path):
    names = ["0002_c1s1_000451_03", "a/0007_c3_f0046985", "-1_c1s1_000401_03", "portrait"]
    put_shard(tmp_path, "train/0.tar", *(sample(name, seed) for seed, name in enumerate(names)))
    found = found_in(store, tmp_path, labels="names", require_splits=("train",))
    assert labels_of(found) == {
        "train/0.tar/0002_c1s1_000451_03.jpg": ("train", 2, 1),
        "train/0.tar/a/0007_c3_f0046985.jpg": ("train", 7, 3),
    }
    assert reasons_of(found) == {"train/0.tar/portrait.jpg": "bad_name"}
    assert found.description["junk_left_out"] == 1


def test_labels_from_folders_equal_those_of_the_reader_folders(store, tmp_path):
    names = [f"{who}/cam{cam}_{shot}.jpg" for who in ("Émile", "anna", "007") for cam in (1, 2) for shot in (1, 2)]
    put(tmp_path / "plain", *names)
    members = {name: (tmp_path / "plain" / name).read_bytes() for name in names}
    put_shard(tmp_path / "packed", "all.tar", members | {"outside.jpg": picture(99)})
    options = {"camera_pattern": r"cam(\d+)", "split": "by_identity", "require_splits": ()}
    here = index(store, config=DatasetConfig(reader="folders", root=str(tmp_path / "plain"), **options)).found
    there = found_in(store, tmp_path / "packed", labels="folders", **options)

    def rows(found):
        return sorted((one.path.removeprefix("all.tar/"), one.pid, one.camid, one.label) for one in found.records)

    assert rows(there) == rows(here)
    assert reasons_of(there) == {"all.tar/outside.jpg": "no_label"}


def test_shards_without_labels_can_be_captioned_and_searched(store, tmp_path):
    put_shard(tmp_path, "00000.tar", sample("1", 1, url="x"), sample("2", 2))
    found = found_in(store, tmp_path, labels="none")
    assert set(labels_of(found).values()) == {("gallery", 0, UNKNOWN_CAMERA)}
    assert not config_of(tmp_path, labels="none").has_identities


def test_a_missing_identity_says_what_the_samples_have(store, tmp_path):
    put_shard(tmp_path, "train-0.tar", {**sample("1", 1, person=7, cam=1), "1.txt": b"A man."})
    with pytest.raises(DataError) as caught:
        found_in(store, tmp_path)
    assert "no sample of" in str(caught.value)
    assert "has the field pid (data.pid_field)" in str(caught.value)
    assert "The samples have: cam, person, txt. Set data.pid_field to the one that fits, such as cam. Or set" in str(
        caught.value
    )
    assert "data.labels=names" in str(caught.value)
    with pytest.raises(DataError, match=r"has the field camera \(data.camid_field\).*such as cam\."):
        found_in(store, tmp_path, pid_field="person", camid_field="camera")


def test_a_field_that_does_not_exist_names_the_usual_one(store, root):
    with pytest.raises(DataError, match=r"samples have: camid, pid. Set data.pid_field to .* such as pid\."):
        found_in(store, root, pid_field="person")


def test_text_and_numbers_as_identities_name_the_field(store, tmp_path):
    put_shard(tmp_path, "train-0.tar", sample("1", 1, who=7), sample("2", 2, who="anna"))
    with pytest.raises(DataError, match=r"text and numbers in the field who \(data.pid_field\).*'anna'.*Write text"):
        found_in(store, tmp_path, pid_field="who")


def test_a_shard_as_root_names_its_folder(store, root):
    with pytest.raises(DataError, match=rf"set data.root={root} and data.shards=train-000000.tar"):
        found_in(store, root / "train-000000.tar")


def test_shards_without_images_say_what_they_have(store, tmp_path):
    dots, empty = tmp_path / "dots", tmp_path / "empty"
    put_shard(dots, "train-0.tar", *(sample(f"frame.{number}", number, pid=1) for number in range(20)))
    put_shard(empty, "train-0.tar")
    with pytest.raises(DataError, match=r"40 members.*by ending: 1 0.jpg.* and 28 more;.*after its first dot"):
        index(store, config=config_of(dots))
    with pytest.raises(DataError, match=r"no usable images: 1 shard without a usable image, such as train-0.tar"):
        index(store, config=config_of(empty))


def test_samples_whose_labels_cannot_be_read_are_rejected(store, tmp_path):
    bad = {
        "2.jpg": picture(2), "2.json": b"{",
        "3.jpg": picture(3), "3.json": b"[1]",
        "4.jpg": picture(4), "4.json": b'{"pid": true}',
        "5.jpg": picture(5), "5.json": b'{"pid": {"a": 1}}',
        "6.jpg": picture(6), "6.json": b'{"cam": 1}',
        "7.jpg": picture(7),
        "8.jpg": picture(8), "8.json": b'{"pid": 1, "split": "val"}',
        "9.jpg": picture(9), "9.json": b'{"pid": 1, "camid": -3}',
        "10.jpg": picture(10), "10.json": b'{"pid": 1, "camid": 1, "txt": 7}',
        "11.jpg": picture(11), "11.json": b"\xff\xfe",
        "12.jpg": b"not an image", "12.json": b'{"pid": 1, "camid": 1}',
    }  # fmt: skip
    put_shard(tmp_path, "train-0.tar", sample("1", 1, pid=1, camid=1), bad)
    found = found_in(store, tmp_path, require_splits=("train",))
    assert [record.path for record in found.records] == ["train-0.tar/1.jpg"]
    assert {path.removeprefix("train-0.tar/"): reason for path, reason in reasons_of(found).items()} == {
        **dict.fromkeys(("2.jpg", "3.jpg", "11.jpg"), "bad_row"),
        **dict.fromkeys(("4.jpg", "5.jpg", "6.jpg", "7.jpg"), "bad_pid"),
        **{"8.jpg": "bad_split", "9.jpg": "bad_camid", "10.jpg": "bad_sentences", "12.jpg": "not_an_image"},
    }
    details = {row.path.rpartition("/")[2]: row.detail for row in found.rejected}
    assert details["2.jpg"].startswith("its member 2.json is not valid JSON")
    assert details["6.jpg"] == "the sample does not have the field pid (data.pid_field)"


def test_half_of_a_character_in_a_label_is_one_message(store, tmp_path):
    put_shard(tmp_path, TRAIN, sample("1", 1, pid="anna\ud800"), *(sample(f"{n}", n, pid="bob") for n in (2, 3)))
    found = found_in(store, tmp_path, require_splits=("train",))
    assert [row.detail for row in found.rejected] == ["its member 1.json has half of a character in pid"]
    put_shard(tmp_path, TRAIN, sample("1", 1, **{"\ud800": 1}))
    with pytest.raises(DataError) as raised:
        found_in(store, tmp_path)
    assert r"The samples have: \ud800" in str(raised.value).encode().decode()


@pytest.mark.parametrize("first", ["json", "pid"])
def test_two_members_with_different_values_of_a_field(store, tmp_path, first):
    parts = [sample("1", 1, pid=1), {"1.pid": b"2"}]
    same = [sample("2", 2, pid=2, camid="3"), {"2.pid": b"2\n", "2.camid": b"3"}]
    put_shard(tmp_path, TRAIN, *(parts if first == "json" else parts[::-1]), *same)
    found = found_in(store, tmp_path, require_splits=("train",))
    assert labels_of(found) == {f"{TRAIN}/2.jpg": ("train", 2, 3)}
    assert "has a different value of pid than another member; keep one" in found.rejected[0].detail


def test_a_shard_without_a_split_says_how_to_give_one(store, tmp_path):
    put_shard(tmp_path, "training-0.tar", *(sample(str(n), n, pid=n // 2) for n in range(8)))
    with pytest.raises(DataError, match=r"8 bad_split.*rename the shard, such as train-000000.tar, or set data.split"):
        found_in(store, tmp_path)
    found = found_in(store, tmp_path, split="by_identity")
    assert {record.split for record in found.records} == {"train", "query", "gallery"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"labels": "names", "pid_field": "id"}, "data.pid_field: has no effect with data.labels=names"),
        ({"camera_pattern": "c(1)"}, "data.camera_pattern: has no effect with data.labels=fields"),
        ({"labels": "none", "split": "by_identity"}, "data.labels=none does not know identities to split"),
        ({"reader": "images", "shards": "a.tar"}, "data.shards: has no effect with the reader images"),
    ],
)
def test_options_without_effect_are_refused(options, problem):
    from flows.recipes import build_recipe

    settings = {"reader": "webdataset", **options}
    with pytest.raises(ConfigError, match=problem):
        build_recipe("demo", [f"data.{key}={value}" for key, value in settings.items()])


# Shards


def test_shards_are_named_with_braces_and_wildcards(root, tmp_path):
    put_shard(root, "old/train-000000.tar", sample("1", 1, pid=1))
    (root / "notes.txt").write_text("x")
    assert find_shards(root, "").paths == [
        "gallery-000000.tar", "old/train-000000.tar", "query-000000.tar", "train-000000.tar", "train-000001.tar",
    ]  # fmt: skip
    assert [*find_shards(root, "").others] == ["notes.txt"]
    assert find_shards(root, "train-{000000..000001}.tar").paths == ["train-000000.tar", "train-000001.tar"]
    assert find_shards(root, "{query,gallery}-*.tar").paths == ["gallery-000000.tar", "query-000000.tar"]
    assert find_shards(root, "old/*.tar").paths == ["old/train-000000.tar"]
    with pytest.raises(DataError, match=r"train-000002.tar does not exist in"):
        find_shards(root, "train-{000000..000002}.tar")
    with pytest.raises(DataError, match=r"the range \{5..1\} is empty"):
        find_shards(root, "train-{5..1}.tar")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"does not contain tar shards: set data.root"):
        find_shards(tmp_path / "none", "")


def test_shards_that_braces_name_are_found_in_time_proportional_to_their_number(tmp_path):
    for number in range(3000):
        (tmp_path / f"train-{number:06d}.tar").touch()
    start = time.process_time()
    found = find_shards(tmp_path, "train-{000000..002999}.tar")
    assert len(found.paths) == 3000
    assert time.process_time() - start < 1
    with pytest.raises(DataError, match=r"train-003000.tar does not exist"):
        find_shards(tmp_path, "train-{000000..003001}.tar")


def test_links_to_shards_stay_in_the_root(store, root, tmp_path):
    away = put_shard(tmp_path / "away", "train-9.tar", sample("1", 1, pid=9))
    (root / "train-000008.tar").symlink_to(away)
    (root / "more").symlink_to(away.parent)
    (root / "train-000007.tar").symlink_to(root / GALLERY)
    found = found_in(store, root, shards="train-00000[0-8].tar", require_splits=("train",))
    assert reasons_of(found) == {"train-000008.tar": "outside_root", "more": "linked_folder"}
    assert len(found.records) == 8


def test_a_manifest_names_members_of_shards(store, root, tmp_path, bucket):
    first = found_in(store, root)
    rows = [(one.path, one.split, one.pid, one.camid) for one in first.records]
    table = ["path,split,pid,camid", *(",".join(map(str, row)) for row in rows), "train-000000.tar/none.jpg,train,1,1"]
    (root / "manifest.csv").write_text("\n".join(table))
    again = index(ArtifactStore(tmp_path / "other"), config=DatasetConfig(reader="manifest", root=str(root))).found
    assert again.records == first.records
    assert again.facts == first.facts
    assert reasons_of(again) == {"train-000000.tar/none.jpg": "missing"}
    copy_tree(root, bucket, "/set")
    there = index(ArtifactStore(tmp_path / "third"), config=DatasetConfig(reader="manifest", root="memory://set"))
    assert there.found.dataset_hash == again.dataset_hash
    path = first.records[0].path
    assert there.images.open(path, there.images.digests()[path]).size == (8, 16)


def test_a_compressed_shard_is_one_message(store, root):
    whole = (root / TRAIN).read_bytes()
    (root / "train-000009.tar.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"1 shard\(s\) in .* are compressed, such as train-000009.tar.gz.*gunzip"):
        found_in(store, root)
    (root / "train-000009.tar.gz").rename(root / "train-000009.tar")
    with pytest.raises(DataError, match=r"compressed, such as train-000009.tar: single images"):
        found_in(store, root)
    found = found_in(store, root, shards="*-00000{0,1}.tar")
    assert len(found.records) == 10


@pytest.mark.parametrize("kind", ["in an image", "between members", "in a header", "empty", "header"])
def test_no_image_of_a_broken_shard_is_used(store, root, kind):
    file = root / "train-000001.tar"
    whole = file.read_bytes()
    with tarfile.open(file) as archive:
        second = archive.getmembers()[1].offset
    ends = {"in an image": 700, "between members": second, "in a header": second + 100, "empty": 0}
    damaged = whole[:second] + b"x" * 512 + whole[second + 512 :]
    file.write_bytes(whole[: ends[kind]] if kind in ends else damaged)
    found = found_in(store, root)
    assert reasons_of(found) == {"train-000001.tar": "broken_shard"}
    assert "copy it again. None of its images is used" in found.rejected[0].detail
    assert len(found.records) == 8


@pytest.mark.parametrize("after", ["another tar file", "something"])
def test_a_shard_with_data_after_its_end_is_broken(store, root, after):
    file = root / "train-000001.tar"
    more = tar_of(sample("9", 9, pid=9)) if after == "another tar file" else b"x" * 600
    file.write_bytes(file.read_bytes() + bytes(1 << 20) + more)
    found = found_in(store, root)
    assert reasons_of(found) == {"train-000001.tar": "broken_shard"}
    assert "data after the end of its 4 members, as if joined by cat" in found.rejected[0].detail


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_thousands_of_headers_for_one_member_are_damage(store, root, kind):
    content = b"abc\0" if kind == b"L" else b"11 path=ab\n"
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(content)
    header = info.tobuf(tarfile.GNU_FORMAT) + content.ljust(512, b"\0")
    file = root / "train-000001.tar"
    file.write_bytes(header * 3000 + file.read_bytes())
    assert reasons_of(found_in(store, root)) == {"train-000001.tar": "broken_shard"}


def test_members_that_cannot_be_used_are_named_or_counted(store, tmp_path):
    stream = io.BytesIO()
    content = sample("1", 1, pid=1)["1.json"]
    with tarfile.open(fileobj=stream, mode="w") as archive:

        def add(name, data=b"", kind=tarfile.REGTYPE, target=""):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, target
            archive.addfile(info, io.BytesIO(data))

        add("./", kind=tarfile.DIRTYPE)
        add("./1.jpg", picture(1))
        add("./1.json", content)
        add("link.jpg", kind=tarfile.SYMTYPE, target="1.jpg")
        add("hard.jpg", kind=tarfile.LNKTYPE, target="1.jpg")
        add("pipe.jpg", kind=tarfile.FIFOTYPE)
        add("/etc/2.jpg", picture(2))
        add("../3.jpg", picture(3))
        add("a\\4.jpg", picture(4))
        add("5.jpg", picture(5))
        add("5.jpg", picture(6))
        add("5.json", content)
        add("6.jpg", picture(7))
        add("6.png", picture(8, "PNG"))
        add("7.npy", b"x")
        add("8", b"x")
        add("._1.jpg", b"x")
        add("9.jpg", picture(9))
        add("9.json", content)
        add("9.json", content)
    (tmp_path / "train-0.tar").write_bytes(stream.getvalue())
    (tmp_path / "train-1.tar").write_bytes(tar_of({}))
    (tmp_path / "00000_stats.json").write_text("{}")
    found = found_in(store, tmp_path, require_splits=("train",))
    assert [record.path for record in found.records] == ["train-0.tar/1.jpg"]
    assert {path.removeprefix("train-0.tar/"): reason for path, reason in reasons_of(found).items()} == {
        **dict.fromkeys(("link.jpg", "hard.jpg", "pipe.jpg"), "not_a_file"),
        **{"/etc/2.jpg": "outside_root", "../3.jpg": "outside_root", "a\\4.jpg": "bad_path"},
        **{"5.jpg": "duplicate_member", "6.jpg": "several_images", "6.png": "several_images", "9.jpg": "bad_row"},
    }
    assert found.notices[:4] == (
        "1 file beside the shards not read, such as 00000_stats.json",
        "2 members of the shards not read, by ending: 1 without ending, 1 npy",
        "2 samples without an image, such as train-0.tar/7",
        "1 shard without a usable image, such as train-1.tar",
    )


def test_a_folder_whose_name_ends_in_tar_is_a_folder(store, tmp_path):
    put(tmp_path / "set", "a.tar/1.jpg", "a.tar/b.tar/2.jpg")
    images = index(store, config=DatasetConfig(reader="images", root=str(tmp_path / "set"))).images
    assert sorted(images.digests()) == ["a.tar/1.jpg", "a.tar/b.tar/2.jpg"]
    assert all(images.open(path, sha256).mode == "RGB" for path, sha256 in images.digests().items())


def test_other_readers_name_this_one(store, root):
    with pytest.raises(DataError, match=r"a tar file; set data.reader=webdataset"):
        index(store, config=DatasetConfig(reader="images", root=str(root)))


# What is read


def test_each_shard_is_read_once(store, root, streamed):
    first = index(store, config=config_of(root))
    assert (first.found.n_read, first.found.n_decoded) == (10, 10)
    assert sorted(streamed) == sorted(file.name for file in root.iterdir())
    streamed.clear()
    again = index(store, config=config_of(root))
    assert (again.made.cached, again.made.ref, again.found.n_read, streamed) == (True, first.made.ref, 0, [])


def test_only_an_appended_shard_is_read_again(store, root, streamed):
    first = index(store, config=config_of(root))
    streamed.clear()
    with tarfile.open(root / TRAIN, "a") as archive:
        for name, content in sample("new", 50, pid=2, camid=1).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    settle()
    put_shard(root, "train-000002.tar", sample("newest", 51, pid=1, camid=1))
    settle()
    second = index(store, config=config_of(root))
    assert sorted(streamed) == [TRAIN, "train-000002.tar"]
    added = {f"{TRAIN}/new.jpg", "train-000002.tar/newest.jpg"}
    assert second.images.digests().keys() - first.images.digests().keys() == added
    assert (second.found.n_read, second.made.cached) == (4, False)


def test_a_repacked_shard_with_the_same_images_is_the_same_dataset(store, root):
    first = index(store, config=config_of(root))
    with tarfile.open(root / GALLERY) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive.getmembers()}
    (root / GALLERY).write_bytes(tar_of(dict(reversed(members.items()))))
    settle()
    second = index(store, config=config_of(root))
    assert second.made.ref == first.made.ref
    digests = second.images.digests()
    assert all(second.images.open(path, digests[path]).size == (8, 16) for path in digests)


def test_other_fields_and_limits_read_the_shards_again(store, root, streamed):
    found_in(store, root)
    streamed.clear()
    assert len(found_in(store, root, camid_field="pid").records) == 10
    assert len(streamed) == 4
    streamed.clear()
    with pytest.raises(DataError, match="10 too_large"):
        found_in(store, root, camid_field="pid", max_pixels=100)
    assert len(streamed) == 4
    streamed.clear()
    index(store, config=config_of(root), reread=True)
    assert len(streamed) == 4


def test_a_shard_that_changes_while_it_is_read_stops_the_index(store, root, monkeypatch):
    original = tables.check

    def check(content, max_pixels):
        with (root / TRAIN).open("ab") as stream:
            stream.write(b"\0" * 512)
        return original(content, max_pixels)

    monkeypatch.setattr(tables, "check", check)
    with pytest.raises(RetryableError, match=r"train-000000.tar changed while it was read. Wait until"):
        found_in(store, root, shards=TRAIN)


def test_a_shard_written_just_now_is_read_again(store, tmp_path, streamed):
    put_shard(tmp_path, TRAIN, sample("1", 1, pid=1))
    future = 4e9
    os.utime(tmp_path / TRAIN, (future, future))
    options = {"require_splits": ("train",)}
    monotone = [found_in(store, tmp_path, **options).dataset_hash for _ in range(2)]
    assert monotone[0] == monotone[1]
    assert len(streamed) in (1, 2)  # twice, unless the first index took longer than a tick of the clock


def test_a_damaged_table_is_made_again(store, root, streamed):
    first = found_in(store, root)
    for file in store.shards.iterdir():
        content = file.read_bytes()
        file.unlink()  # the process has mapped it
        file.write_bytes(content[:100])
    streamed.clear()
    second = index(store, config=config_of(root)).survey()
    assert (second.dataset_hash, len(streamed)) == (first.dataset_hash, 4)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9, 1.0])
def test_a_table_with_a_wrong_byte_is_made_again(store, root, streamed, where):
    first = found_in(store, root)
    for file in store.shards.iterdir():
        content = bytearray(file.read_bytes())
        content[int((len(content) - 1) * where)] ^= 1
        file.unlink()  # the process has mapped it
        file.write_bytes(content)
    streamed.clear()
    second = index(store, config=config_of(root)).survey()
    assert (second.dataset_hash, len(streamed)) == (first.dataset_hash, 4)


def test_a_full_disk_is_not_an_unreadable_shard(root, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        store = ArtifactStore(disk / "store")
        (disk / "filler").write_bytes(bytes(60_000))
        with pytest.raises(ClipScgiError, match=r"the disk of .* is full: the table of a tar shard"):
            index(store, config=config_of(root))


def test_a_folder_of_tables_that_cannot_be_written_is_not_an_unreadable_shard(store, root):
    store.shards.parent.mkdir(exist_ok=True)
    store.shards.write_text("a file")
    with pytest.raises(RetryableError, match=r"shards, which has the tables of tar shards, cannot be written"):
        index(store, config=config_of(root))


# Opening images


def test_an_image_is_opened_by_one_read_of_its_bytes(store, root, monkeypatch):
    images = index(store, config=config_of(root)).images
    read = []
    original = os.pread

    def pread(handle, size, offset):
        read.append((size, offset))
        return original(handle, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    path, sha256 = next(iter(images.digests().items()))
    shards._TABLES.clear()
    assert images.open(path, sha256).size == (8, 16)
    shard, _, member = path.partition(".tar/")
    with tarfile.open(root / f"{shard}.tar") as archive:
        info = archive.getmember(member)
    assert read == [(info.size, info.offset_data)]


def test_without_a_table_the_headers_are_read_and_kept_in_memory(store, root):
    images = IndexedImages.from_json(index(store, config=config_of(root)).images.to_json())
    for file in store.shards.iterdir():
        file.unlink()
    shards._TABLES.clear()
    for path, sha256 in images.digests().items():
        assert images.open(path, sha256).mode == "RGB"
    assert list(store.shards.iterdir()) == []


def test_the_headers_of_many_shards_are_read_once(tmp_path, monkeypatch):
    for number in range(300):
        put_shard(tmp_path, f"{number}.tar", {"1.jpg": b"1", "2.jpg": b"2"})
    (tmp_path / "broken.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:1500])
    opened, original = [], shards.open_shard
    monkeypatch.setattr(shards, "open_shard", lambda *of: opened.append(of) or original(*of))
    for member in ("1.jpg", "2.jpg"):
        assert all(read_bytes(tmp_path / f"{number}.tar" / member) == member[:1].encode() for number in range(300))
        assert not is_file(tmp_path / "broken.tar" / member)
    assert len(opened) == 301


def test_threads_read_the_headers_of_a_shard_once(store, root, monkeypatch):
    index(store, config=config_of(root, shards=TRAIN, require_splits=("train",)))
    for file in store.shards.iterdir():
        file.unlink()
    shards._TABLES.clear()
    opened, original = [], shards.open_shard
    monkeypatch.setattr(shards, "open_shard", lambda *of: opened.append(of) or original(*of))
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(read_bytes, [root / TRAIN / "1_1.jpg"] * 32))
    assert (len(set(contents)), len(opened)) == (1, 1)


def test_an_image_that_changes_or_goes_after_the_index_is_not_used(store, root):
    images = index(store, config=config_of(root)).images
    digests = images.digests()
    put_shard(root, TRAIN, sample("1_1", 77, pid=1, camid=1))
    with pytest.raises(RejectedRow, match="changed"):
        images.open(f"{TRAIN}/1_1.jpg", digests[f"{TRAIN}/1_1.jpg"])
    with pytest.raises(RejectedRow, match="missing"):
        images.open(f"{TRAIN}/1_2.jpg", digests[f"{TRAIN}/1_2.jpg"])
    (root / GALLERY).unlink()
    with pytest.raises(RejectedRow, match=r"missing|unreadable"):
        images.open(f"{GALLERY}/g/3_2.jpg", digests[f"{GALLERY}/g/3_2.jpg"])
    (root / TRAIN).write_bytes(b"x" * 600)
    with pytest.raises(RejectedRow, match="truncated"):
        images.open(f"{TRAIN}/1_1.jpg", digests[f"{TRAIN}/1_1.jpg"])


def test_the_folder_of_the_shards_is_found_by_the_digests(store, root, tmp_path):
    other = people_in_shards(tmp_path / "other")
    put_shard(other, TRAIN, sample("1_1", 88, pid=1, camid=1), sample("1_2", 89, pid=1, camid=2))
    settle()
    index(store, config=config_of(other))
    images = index(store, config=config_of(root)).images
    digests = {path: sha256 for path, sha256 in images.digests().items() if path.startswith(TRAIN)}
    assert find_root(store, list(digests), list(digests.values())) == root
    path = root / TRAIN / "1_1.jpg"
    assert (is_file(path), is_file(root / TRAIN / "none.jpg"), file_of(path)) == (True, False, root / TRAIN)


def test_the_table_of_a_shard_is_mapped_and_sorted(store, tmp_path):
    names = [f"{number:05d}" for number in range(200)]
    put_shard(tmp_path, TRAIN, *(sample(name, 1, pid=1) for name in reversed(names)))
    settle()
    found_in(store, tmp_path, require_splits=("train",))
    table = shards.load(store.shards, str(tmp_path / TRAIN))
    assert [table.row(f"{name}.jpg") for name in names] == list(range(200))
    assert [table.row(name) for name in ("", "zzz", "00100.jpgx")] == [None, None, None]
    before = pa.total_allocated_bytes()
    again = shards.load(store.shards, str(tmp_path / TRAIN))
    assert pa.total_allocated_bytes() - before < 1024  # the columns are the pages of the file
    assert again.rows.equals(table.rows)


# Object stores


def test_shards_in_a_store_are_streamed_once_and_images_read_by_range(store, root, bucket, monkeypatch):
    copy_tree(root, bucket, "/set")
    kind, read = type(bucket), []
    original = kind.cat_file

    def cat_file(self, path, start=None, end=None, **options):
        read.append((path.rpartition("/")[2], start, end))
        return original(self, path, start=start, end=end, **options)

    monkeypatch.setattr(kind, "cat_file", cat_file)
    here = index(store, config=config_of(root))
    there = index(ArtifactStore(store.root / "other"), config=config_of("memory://set"))
    assert there.made.ref.fingerprint == here.made.ref.fingerprint
    assert sorted(read) == [(file.name, 0, file.stat().st_size) for file in sorted(root.iterdir())]
    read.clear()
    path, sha256 = f"{TRAIN}/1_2.jpg", there.images.digests()[f"{TRAIN}/1_2.jpg"]
    assert there.images.open(path, sha256).size == (8, 16)
    [(name, start, end)] = read
    assert digest_bytes((root / name).read_bytes()[start:end]) == sha256
    read.clear()
    again = index(ArtifactStore(store.root / "other"), config=config_of("memory://set"))
    assert (again.made.cached, again.found.n_read, read) == (True, 0, [])
    bucket.pipe_file(f"/set/{TRAIN}", tar_of(sample("1_2", 66, pid=1, camid=1)))
    after = index(ArtifactStore(store.root / "other"), config=config_of("memory://set"))
    assert {name for name, _, _ in read} == {TRAIN}
    assert after.found.n_read == 1


@pytest.mark.parametrize("block", [512, 1000, 100_000])
def test_an_object_is_read_block_by_block(tmp_path, bucket, block):
    file = put_shard(tmp_path, TRAIN, *(sample(f"{n:03d}", n, pid=n % 3) for n in range(20)))
    bucket.pipe_file(f"/set/{TRAIN}", file.read_bytes())
    place = f"memory:/set/{TRAIN}"
    with open_object(place, file.stat().st_size, block=block) as stream, tarfile.open(file) as archive:
        for member, info in zip(members(stream), archive, strict=True):
            assert member == (info.name, "file", info.offset_data, info.size)
            stream.seek(member.offset)
            assert stream.read(member.size) == archive.extractfile(info).read()


def test_a_broken_shard_in_a_store_is_rejected(store, root, bucket):
    copy_tree(root, bucket, "/set")
    bucket.pipe_file(f"/set/{TRAIN}", (root / TRAIN).read_bytes()[:700])
    found = found_in(store, "memory://set")
    assert reasons_of(found) == {TRAIN: "broken_shard"}
    assert len(found.records) == 8


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_broken_shard_is_not_read_again_until_it_changes(store, root, bucket, streamed, where):
    content = (root / TRAIN).read_bytes()

    def put(part):
        (root / TRAIN).write_bytes(part)
        settle()
        if where == "bucket":
            bucket.pipe_file(f"/set/{TRAIN}", part)

    put(content[:700])
    if where == "bucket":
        copy_tree(root, bucket, "/set")
    place = "memory://set" if where == "bucket" else root
    first = found_in(store, place)
    streamed.clear()
    for again in (found_in(store, place), survey(store, config=config_of(place))):
        assert (again.rejected, again.records, streamed) == (first.rejected, first.records, [])
    with pytest.raises(RejectedRow, match="truncated"):
        shards.table_of(f"{Path(place)}/{TRAIN}" if where == "folder" else f"memory:/set/{TRAIN}")
    assert streamed == []
    put(content)
    assert reasons_of(found_in(store, place)) == {}
    assert streamed == [TRAIN]


# Garbage


def test_gc_removes_the_tables_of_shards_that_are_gone(store, root, bucket):
    copy_tree(root, bucket, "/set")
    found_in(store, root), found_in(store, "memory://set")
    (root / TRAIN).unlink()
    bucket.rm_file(f"/set/{GALLERY}")
    (store.shards / "damaged.arrow").write_bytes(b"x")
    gone = {shards.table_file(store.shards, f"{root}/{TRAIN}"), store.shards / "damaged.arrow"}
    gone |= {shards.table_file(store.shards, f"memory:/set/{GALLERY}")}
    assert {*store.shards.iterdir()} > gone
    assert plan_gc(store, keep_runs=1, days=1).tables == []
    plan = replace(plan_gc(store, keep_runs=1, days=-1), artifacts=[])
    assert ({table.folder for table in plan.tables}, plan.size) == (gone, sum(file.stat().st_size for file in gone))
    kept = {*store.shards.iterdir()} - gone
    opened = shards.load(store.shards, f"{root}/{TRAIN}")
    os.utime(store.shards / "damaged.arrow", (0, 0))  # written again meanwhile
    assert {*collect(store, plan)} == gone - {store.shards / "damaged.arrow"}
    assert {*store.shards.iterdir()} == kept | {store.shards / "damaged.arrow"}
    assert opened.rows["name"].to_pylist()


def test_gc_keeps_tables_of_shards_that_a_store_does_not_tell_of(store, root, bucket, monkeypatch):
    copy_tree(root, bucket, "/set")
    found_in(store, "memory://set")
    monkeypatch.setattr(type(bucket), "info", lambda *args, **options: 1 / 0)
    assert plan_gc(store, keep_runs=1, days=-1).tables == []


class _Ranges(SimpleHTTPRequestHandler):
    """A web server that answers requests for a range, which Python's own does not."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            super().do_GET()
            return
        start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        with Path(self.translate_path(self.path)).open("rb") as stream:
            stream.seek(start)
            part = stream.read(end + 1 - start)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args: object) -> None:
        """Write nothing."""


@contextmanager
def served(folder, handler) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_shards_of_a_web_server_are_named_by_a_setting(store, root):
    names = "{train-{000000..000001},query-000000,gallery-000000}.tar"
    here = found_in(store, root)
    with served(root, _Ranges) as address:
        with pytest.raises(DataError, match=r"cannot be listed.*set data.shards to the names of the shards"):
            found_in(store, address)
        with pytest.raises(DataError, match=r"train-000007.tar does not exist"):
            found_in(store, address, shards="train-000007.tar")
        outcome = index(store, config=config_of(address, shards=names))
        assert outcome.found.dataset_hash == here.dataset_hash
        path, sha256 = next(iter(outcome.images.digests().items()))
        assert outcome.images.open(path, sha256).size == (8, 16)


def test_a_shard_of_a_web_server_that_was_just_replaced_is_read_again(store, root):
    with served(root, _Ranges) as address:
        options = {"shards": TRAIN, "require_splits": ("train",)}
        before = (root / TRAIN).stat()
        assert len(found_in(store, address, **options).records) == 2
        put_shard(root, TRAIN, *(sample(f"{n}", n, size=(9, 17), pid=1, camid=n) for n in (1, 2, 3)))
        os.utime(root / TRAIN, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (root / TRAIN).stat().st_size == before.st_size  # so only the content tells
        found = index(store, config=config_of(address, **options))
        assert len(found.found.records) == 3
        path, sha256 = next(iter(found.images.digests().items()))
        assert found.images.open(path, sha256).size == (9, 17)


def test_a_web_server_without_ranges_is_refused(store, root):
    class Plain(_Ranges):
        def do_GET(self) -> None:
            del self.headers["Range"]
            super().do_GET()

    with served(root, Plain) as address:
        images = index(store, config=config_of(address, shards=TRAIN, require_splits=("train",))).images
        path, sha256 = next(iter(images.digests().items()))
        with pytest.raises(DataError, match="its server ignores the range of a request"):
            images.open(path, sha256)


def test_a_setting_of_shards_is_checked_like_an_address():
    assert build_config(DatasetConfig, {"reader": "webdataset", "shards": "a/{0..9}.tar"}, "x").shards == "a/{0..9}.tar"
