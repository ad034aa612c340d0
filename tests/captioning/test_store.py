"""The caption store: append-only shards that survive kills, damage and concurrent processes."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.captioner import Captioner
from captioning.prompts.replies import Reply
from captioning.store.rows import CaptionRow
from captioning.store.shards import UnusableShardError
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.errors import ClipScgiError
from data.files import read_json
from data.schemas import SHARD

WHO = Captioner(fingerprint="f" * 32, model_id="m/x", model_revision="main", ingredients={"engine": 1})


def row(number: int, text: str = "A man.", **confidence: float) -> CaptionRow:
    reply = Reply(text=text, n_tokens=3, truncated=False, batch_size=2, confidence=confidence)
    return CaptionRow.of(f"{number:064x}", reply)


@pytest.fixture
def store(tmp_path):
    return CaptionStore(tmp_path, WHO)


def read(store: CaptionStore) -> pa.Table:
    snapshot = Snapshot(store)
    snapshot.refresh()
    return snapshot.table()


def numbers(store: CaptionStore) -> list[int]:
    return [int(key, 16) for key in read(store)["image_sha256"].to_pylist()]


def test_empty_store_has_the_schema(store):
    assert read(store).schema.equals(SHARD)
    assert len(read(store)) == 0
    assert store.append([]) is None
    assert not store.folder.exists()


def test_rows_are_read_sorted_with_provenance(store):
    store.append([row(7), row(2, hair=-0.5)])
    store.append([row(5)])
    table = read(store)
    assert [int(key, 16) for key in table["image_sha256"].to_pylist()] == [2, 5, 7]
    assert table["conf_hair"].to_pylist() == [-0.5, None, None]
    meta = read_json(store.folder / "meta.json")
    assert (meta["model_id"], meta["ingredients"]) == ("m/x", {"engine": 1})


def test_same_rows_are_the_same_file(store):
    assert store.append([row(1)]) == store.append([row(1)])
    assert len(list(store.folder.glob("part-*"))) == 1


def test_of_two_rows_for_one_image_that_of_the_first_shard_by_name_is_used(store):
    paths = [store.append([row(1, text), row(2 + i)]) for i, text in enumerate(("one", "two", "three"))]
    expected = pq.read_table(min(paths))["raw_text"].to_pylist()[0]
    for _ in range(3):
        table = read(store)
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
    assert old.exists()  # reading removes nothing
    store.remove_leftovers()
    assert fresh.exists()
    assert not old.exists()


def test_many_writers_and_readers_at_once(store):
    def work(worker: int) -> None:
        for i in range(5):
            store.append([row(worker * 100 + i), row(9999)])
            read(store)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    assert numbers(store) == sorted([w * 100 + i for w in range(4) for i in range(5)] + [9999])


def test_full_disk_is_a_clear_error_and_earlier_shards_stay(store, monkeypatch):
    store.append([row(1)])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ClipScgiError, match=f"^the disk of {store.folder} is full: the newest captions could not be written. Free"
    ):
        store.append([row(2)])
    assert numbers(store) == [1]
    assert len(list(store.folder.iterdir())) == 2  # the shard and meta.json, no half-written file


def test_five_hundred_shards_are_read_as_one(store, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for i in range(500):
        store.append([row(i)])
    assert numbers(store) == list(range(500))


def test_a_shard_is_named_by_its_bytes_and_compressed(store, tmp_path):
    path = store.append([row(1)])
    assert path.parent == store.folder == tmp_path / "captions" / ("f" * 32)
    assert path.name == f"part-{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}.parquet"
    assert store.shards() == [path.name]
    columns = pq.ParquetFile(path).metadata.row_group(0)
    assert {columns.column(i).compression for i in range(columns.num_columns)} == {"ZSTD"}


def test_the_captioner_is_written_once(store):
    store.append([row(1)])
    meta = store.folder / "meta.json"
    assert read_json(meta) == {
        "fingerprint": "f" * 32,
        "ingredients": {"engine": 1},
        "model_id": "m/x",
        "model_revision": "main",
    }
    meta.write_text("{}")
    store.append([row(2)])
    assert meta.read_text() == "{}"


def test_other_files_in_the_folder_are_not_shards(store):
    name = store.append([row(1)]).name
    for other in (f"{name}.bak", f"x{name}", "part-abc.parquet", f"part-{'g' * 32}.parquet"):
        (store.folder / other).write_bytes(b"?")
    assert store.shards() == [name]


def test_a_shard_of_another_version_is_set_aside(store, caplog):
    good = store.append([row(1)])
    buffer = io.BytesIO()
    pq.write_table(pq.read_table(good).drop_columns(["error"]), buffer)
    bad = store.folder / f"part-{hashlib.sha256(buffer.getvalue()).hexdigest()[:32]}.parquet"
    bad.write_bytes(buffer.getvalue())
    with caplog.at_level(logging.WARNING):
        assert numbers(store) == [1]
    assert caplog.messages == [
        f"caption shard {bad} moved to quarantine: its columns belong to another version; its images are captioned "
        "again"
    ]
    assert (store.folder / "quarantine" / bad.name).read_bytes() == buffer.getvalue()


def test_several_shards_can_be_set_aside(store):
    for number in (1, 2):
        store.append([row(number)]).write_bytes(b"")
    assert numbers(store) == []
    assert len(list((store.folder / "quarantine").iterdir())) == 2


def test_damaged_bytes_are_reported_as_such(store, caplog):
    path = store.append([row(1)])
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UnusableShardError, match="does not match the digest"):
        store.read_shard(path.name)
    assert path.exists()
    with caplog.at_level(logging.WARNING):
        assert numbers(store) == []
    assert caplog.messages == [
        f"caption shard {path} moved to quarantine: its content does not match the digest in its name; its images are "
        "captioned again"
    ]


def test_a_shard_that_another_process_has_set_aside_meanwhile(store, caplog, monkeypatch):
    path = store.append([row(1)])
    path.unlink()
    monkeypatch.setattr(store, "shards", lambda: [path.name])
    with caplog.at_level(logging.INFO):
        assert numbers(store) == []
        store.set_aside(path.name, "it is damaged")
    assert (caplog.messages[0], caplog.messages[2]) == (f"another process has already moved {path.name}",) * 2


def test_leftovers_are_removed_when_they_are_older_than_an_hour(store, monkeypatch):
    store.append([row(1)])
    for age in (3599, 3600, 3601):
        path = store.folder / f".part-{age}.parquet.x.tmp"
        path.write_bytes(b"half a shard")
        os.utime(path, (2_000_000_000 - age,) * 2)
    monkeypatch.setattr("captioning.store.shards.time.time", lambda: 2_000_000_000.0)
    store.remove_leftovers()
    assert sorted(path.name for path in store.folder.glob(".*.tmp")) == [
        ".part-3599.parquet.x.tmp",
        ".part-3600.parquet.x.tmp",
    ]


def test_leftovers_that_vanish_do_not_stop_the_removal_of_others(store, monkeypatch):
    store.append([row(1)])
    paths = [store.folder / f".part-{name}.parquet.x.tmp" for name in "abc"]
    for path in paths:
        path.write_bytes(b"half a shard")
        os.utime(path, (1, 1))
    unlink, gone = Path.unlink, []

    def vanishing(path, *args):
        unlink(path)
        if not gone:
            gone.append(path)
            raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "unlink", vanishing)
    store.remove_leftovers()
    assert not any(path.exists() for path in paths)


def test_a_snapshot_reads_each_shard_once_and_knows_its_images(store, monkeypatch):
    names, real = [], CaptionStore.read_shard
    monkeypatch.setattr(CaptionStore, "read_shard", lambda self, name: names.append(name) or real(self, name))
    snapshot = Snapshot(store)
    snapshot.refresh()
    assert (len(snapshot.table()), len(snapshot)) == (0, 0)
    first = store.append([row(1), row(2)])
    snapshot.refresh()
    second = store.append([row(2, "Another."), row(3)])
    snapshot.refresh()
    snapshot.refresh()
    assert names == [first.name, second.name]
    assert len(snapshot) == 3
    assert snapshot.table().equals(read(store))
    assert snapshot.table().schema.equals(SHARD)
