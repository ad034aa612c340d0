"""The caption store: append-only shards that survive kills, damage and company."""

from __future__ import annotations

import errno
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from captioning.captioner import Captioner
from captioning.store import CaptionStore
from data.errors import ClipScgiError
from data.files import read_json
from data.schemas import SHARD

WHO = Captioner(fingerprint="f" * 32, model_id="m/x", model_revision="main", ingredients={"engine": 1})


def row(number: int, text: str = "A man.") -> dict[str, object]:
    return {
        "image_sha256": f"{number:064x}",
        "raw_text": text,
        "status": "ok",
        "error": None,
        "n_tokens": 3,
        "truncated": False,
        "batch_size": 2,
    }


@pytest.fixture
def store(tmp_path):
    return CaptionStore(tmp_path, WHO)


def numbers(store: CaptionStore) -> list[int]:
    return [int(key, 16) for key in store.read()["image_sha256"].to_pylist()]


def test_empty_store_has_the_schema(store):
    assert store.read().schema.equals(SHARD)
    assert len(store.read()) == 0
    assert store.append([]) is None
    assert not store.folder.exists()


def test_rows_come_back_sorted_with_provenance_beside(store):
    store.append([row(7), row(2) | {"conf_hair": -0.5}])
    store.append([row(5)])
    table = store.read()
    assert [int(key, 16) for key in table["image_sha256"].to_pylist()] == [2, 5, 7]
    assert table["conf_hair"].to_pylist() == [-0.5, None, None]
    meta = read_json(store.folder / "meta.json")
    assert (meta["model_id"], meta["ingredients"]) == ("m/x", {"engine": 1})


def test_same_rows_are_the_same_file(store):
    assert store.append([row(1)]) == store.append([row(1)])
    assert len(list(store.folder.glob("part-*"))) == 1


def test_of_two_rows_for_one_image_the_first_shard_by_name_counts(store):
    paths = [store.append([row(1, text), row(2 + i)]) for i, text in enumerate(("one", "two", "three"))]
    expected = pq.read_table(min(paths))["raw_text"].to_pylist()[0]
    for _ in range(3):
        table = store.read()
        assert len(table) == 4
        assert table["raw_text"].to_pylist()[0] == expected


@pytest.mark.parametrize("damage", ["changed", "cut", "empty"])
def test_damaged_shard_is_set_aside_with_a_warning(store, caplog, damage):
    bad = store.append([row(1), row(2)])
    store.append([row(3)])
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes({"changed": bytes(content), "cut": bytes(content[:50]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert numbers(store) == [3]
    assert bad.name in caplog.text
    assert (store.folder / "quarantine" / bad.name).exists()
    caplog.clear()
    store.append([row(1), row(2)])
    assert numbers(store) == [1, 2, 3]
    assert not caplog.text


def test_leftovers_of_a_killed_writer_are_ignored_and_cleared_when_old(store):
    store.append([row(1)])
    fresh, old = store.folder / ".part-a.parquet.x.tmp", store.folder / ".part-b.parquet.y.tmp"
    for path in (fresh, old):
        path.write_bytes(b"half a shard")
    os.utime(old, (time.time() - 9999,) * 2)
    assert numbers(store) == [1]
    assert fresh.exists()
    assert not old.exists()


def test_many_writers_and_readers_at_once(store):
    def work(worker: int) -> None:
        for i in range(5):
            store.append([row(worker * 100 + i), row(9999)])
            store.read()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    assert numbers(store) == sorted([w * 100 + i for w in range(4) for i in range(5)] + [9999])


def test_full_disk_is_a_clear_error_and_earlier_shards_stay(store, monkeypatch):
    store.append([row(1)])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ClipScgiError, match="is full: the newest captions"):
        store.append([row(2)])
    assert numbers(store) == [1]
    assert len(list(store.folder.iterdir())) == 2  # the shard and meta.json, no half-written file


def test_five_hundred_shards_are_read_as_one(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for i in range(500):
        store.append([row(i)])
    assert numbers(store) == list(range(500))
