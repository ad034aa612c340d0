"""Listings of object stores: columns against plain dictionaries and sets, for keys of any kind and in any order."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data.columns.texts import Texts
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index.stage import index
from data.sources import client, places, remote
from data.sources.listing import Entry, Listing, list_objects
from tests.helpers.data_trees import market, put, settle
from tests.helpers.stores import copy_tree

NAMES = ["a", "a ", "a-", "a.jpg", "a0", "A", "b", "part", "z", "ß", "ü 1.jpg", "\uffff", "😀", "\x7f", "..", ""]


def keys(count, depth, seed=0):
    """Return `count` distinct keys of up to `depth` names, sorted; some are both an object and a folder."""
    rng = random.Random(seed)
    found = {"/".join(rng.choices(NAMES, k=rng.randint(1, depth))) for _ in range(3 * count)}
    return sorted(found - {path for path in found if not path or path.endswith("/")})[:count]


def listing_of(paths):
    numbers = np.arange(3 * len(paths)).reshape(-1, 3)
    return Listing(Texts(paths), numbers), {
        path: Entry(*row) for path, row in zip(paths, numbers.tolist(), strict=True)
    }


class Unordered(fsspec.AbstractFileSystem):
    """Objects that are found in the order in which they were put, with their details."""

    cachable = False
    root_marker = ""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def find(self, path, **options):
        return {f"{path}/{name}": info for name, info in self.found.items()}


@pytest.fixture
def listed(monkeypatch):
    """Return a function that lists objects, name -> details, that a store finds."""

    def listed(found):
        monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: Unordered(found))
        client.filesystem.cache_clear()
        return list_objects(Path("gs:/bucket/set"))

    yield listed
    client.filesystem.cache_clear()


# Columns


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 129, 700])
def test_entries_are_those_of_a_dictionary(count):
    paths = keys(count, 4)
    found, known = listing_of(paths)
    assert {path: found.entry(path) for path in paths} == known
    absent = [*itertools.chain.from_iterable((f"{path} ", path[:-1], f"{path}/") for path in paths), "", "\ud800", "zz"]
    assert [path for path in absent if found.entry(path) != known.get(path)] == []


def test_folders_and_their_children_are_those_of_a_set():
    paths = keys(700, 5)
    found, _ = listing_of(paths)
    folders = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"} - {""}
    tried = folders | {f"{folder}x" for folder in folders} | {folder[:-1] for folder in folders} | {*paths} | {"\ud800"}
    assert {folder for folder in tried - {""} if found.has_folder(folder)} == folders
    for folder in ["", *folders]:
        below = [path[len(folder) + 1 :] for path in paths if path.startswith(f"{folder}/")] if folder else paths
        names = [*found.children(folder)]
        assert len(names) == len({*names})
        assert {*names} == {path.partition("/")[0] for path in below}
    assert [*found.children("none")] == []


def test_objects_of_one_name_are_found_in_any_folder():
    found, _ = listing_of(sorted(["x.db", "a/x.db", "a/b/x.db", "a/yx.db", "x.db/a", "x.dbb"]))
    assert found.named("x.db") == ["a/b/x.db", "a/x.db", "x.db"]


def test_a_part_of_a_column_is_a_listing_too():
    paths = keys(300, 3)
    found = Listing(Texts(paths)[100:], np.zeros((200, 3), dtype=np.int64))
    assert [path for path in paths if found.entry(path)] == paths[100:]


# What a store tells


def test_objects_in_any_order_are_listed_as_python_sorts_them(listed):
    paths = keys(500, 4)
    shuffled = random.Random(1).sample(paths, len(paths))
    found = listed({path: {"size": number, "etag": path} for number, path in enumerate(shuffled)})
    assert [*found.paths] == paths
    assert {path: found.entry(path).size for path in paths} == {path: at for at, path in enumerate(shuffled)}
    assert found.entry(paths[7]) == Entry.of({"size": shuffled.index(paths[7]), "etag": paths[7]})


def test_folders_and_markers_are_not_objects(listed):
    info = {"size": 1, "etag": "x"}
    found = listed({"b/": info, "c": {**info, "type": "directory"}, "": info, "b/1.jpg": info, "a": {"size": 0}})
    assert [*found.paths] == ["a", "b/1.jpg"]
    assert found.entry("a") == Entry(0, 0, 0)


def test_half_a_character_is_an_escape_that_readers_refuse(listed):
    assert [*listed({"a\ud800.jpg": {"size": 1}}).paths] == ["a\\ud800.jpg"]


def test_times_beyond_64_bits_stay_at_the_last_one():
    far = Entry.of({"size": 1, "LastModified": datetime(9999, 1, 1, tzinfo=UTC)})
    early = Entry.of({"size": 1, "LastModified": datetime(1, 1, 2, tzinfo=UTC)})
    assert (far.mtime_ns, early.mtime_ns) == ((1 << 63) - 1, 1 - (1 << 63))
    assert np.array([far, early], dtype=np.int64).tolist() == [[*far], [*early]]


def test_a_store_that_refuses_to_list_is_one_error(monkeypatch):
    class Closed(Unordered):
        def find(self, path, **options):
            raise PermissionError("SECRET")

    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **options: Closed({}))
    client.filesystem.cache_clear()
    with pytest.raises(DataError, match=r"gs://bucket/set cannot be read: access denied. Set GOOGLE") as caught:
        list_objects(Path("gs:/bucket/set"))
    assert "SECRET" not in str(caught.value)
    client.filesystem.cache_clear()


# Who reads it


def test_a_folder_is_listed_once_per_look_at_the_dataset(store, bucket, tmp_path, monkeypatch):
    copy_tree(market(tmp_path / "set"), bucket, "/set")
    settle()
    found, original = [], type(bucket).find
    monkeypatch.setattr(
        type(bucket), "find", lambda self, path, **options: found.append(path) or original(self, path, **options)
    )
    config = DatasetConfig(reader="market1501", root="memory://set")
    index(store, config=config)
    assert found == ["/set", "/set"]  # before and after reading
    index(store, config=config)
    assert found == ["/set"] * 3


def test_the_children_of_a_folder_come_from_the_listing_around_it(bucket, tmp_path):
    put(tmp_path / "set", "p/a.jpg", "p/q/b.jpg", "p-.jpg", "p0/c.jpg")
    copy_tree(tmp_path / "set", bucket, "/set")
    root = Path("memory:/set")
    remote.refresh(root)
    bucket.pipe_file("/set/p/later.jpg", b"1")
    assert sorted(places.children(root)) == [root / "p", root / "p-.jpg", root / "p0"]
    assert sorted(places.children(root / "p")) == [root / "p/a.jpg", root / "p/q"]
    remote.refresh(root / "p")
    assert sorted(path.name for path in places.children(root / "p")) == ["a.jpg", "later.jpg", "q"]
