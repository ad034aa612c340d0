"""Compaction of the caption store: the same captions at every instant, whoever reads, writes, or is killed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioning.captioner import Captioner
from captioning.prompts.replies import Reply
from captioning.store.compaction import MOST_PARTS, compact, compact_all
from captioning.store.rows import CaptionRow
from captioning.store.shards import Shards, is_pack
from captioning.store.snapshot import Snapshot
from captioning.store.store import CaptionStore
from data.columns.digests import digests_of
from data.process.locks import lock
from data.schemas import SHARD
from tests.helpers.killed import die_at, operations

WHO = Captioner(fingerprint="f" * 32, model_id="m/x", model_revision="main", ingredients={})


def row(number: int, text: str = "") -> CaptionRow:
    return CaptionRow.of(f"{number:064x}", Reply(text=text or f"Text {number}.", n_tokens=3, truncated=False))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path):
    return CaptionStore(tmp_path, WHO)


def filled(store: CaptionStore, parts: int = 10, *, start: int = 0) -> pa.Table:
    """Add parts of three rows, of which the last is also in the next part with another text; return all rows."""
    for part in range(start, start + parts):
        store.append([row(2 * part + i, f"Text {2 * part + i} of part {part}.") for i in range(3)])
    return read(store)


def read(store: Shards) -> pa.Table:
    snapshot = Snapshot(store)
    snapshot.refresh()
    return snapshot.table()


def names(store: Shards, *, packs: bool) -> list[str]:
    return [name for name in store.shards() if is_pack(name) == packs]


def test_parts_become_packs_with_the_same_rows_sorted_by_image(store):
    before = filled(store)
    assert compact(store, most_parts=9, pack_rows=8) == 10
    packs = names(store, packs=True)
    assert names(store, packs=False) == []
    assert len(packs) == 3
    assert read(store).equals(before)
    assert store.count() == len(before) == 21
    for name in packs:
        images = store.read_shard(name)["image_sha256"].to_pylist()
        assert images == sorted(set(images))
        assert len(images) <= 8
    assert {path.name for path in store.folder.iterdir()} == {*packs, "meta.json", "claims"}


def test_few_parts_stay_and_a_second_compaction_does_nothing(store):
    filled(store, 4)
    assert compact(store, most_parts=4) == 0
    assert len(names(store, packs=False)) == 4
    assert compact(store, most_parts=3) == 4
    kept = store.shards()
    assert compact(store, most_parts=0) == 0
    assert store.shards() == kept
    assert MOST_PARTS == 64
    assert compact(CaptionStore(store.folder / "absent", WHO), most_parts=0) == 0


def test_small_packs_are_merged_and_full_ones_left_alone(store):
    filled(store, 10)
    compact(store, most_parts=0, pack_rows=8)
    full = {name for name in names(store, packs=True) if store.rows_of(name) >= 4}
    before = filled(store, 3, start=20)
    assert compact(store, most_parts=0, pack_rows=8) == 3
    assert full < set(store.shards())
    after = filled(store, 3, start=30)
    small = [name for name in store.shards() if store.rows_of(name) < 8]
    assert compact(store, most_parts=0, pack_rows=16) == len(small)
    assert len(before) < len(after) == len(read(store)) == store.count()
    assert read(store).equals(after)


def test_a_caption_in_a_pack_is_used_before_that_of_a_later_part(store):
    store.append([row(1, "first")])
    compact(store, most_parts=0)
    for attempt in range(8):
        store.append([row(1, f"again {attempt}")])
    assert read(store)["raw_text"].to_pylist() == ["first"]
    assert compact(store, most_parts=0) == 9 - 1
    assert store.count() == 1
    assert read(store)["raw_text"].to_pylist() == ["first"]


def test_images_of_a_pack_are_found_without_its_texts(store, monkeypatch):
    before = filled(store)
    compact(store, most_parts=0)
    monkeypatch.setattr(Shards, "read_shard", lambda self, name: pytest.fail("a text was read"))
    snapshot = Snapshot(store)
    snapshot.refresh()
    assert len(snapshot) == 21
    wanted = pa.array([f"{number:064x}" for number in (20, 21, 0, 20)])
    assert snapshot.has(digests_of(wanted)).tolist() == [True, False, True, True]
    monkeypatch.undo()
    at, rows = zip(*snapshot.read(digests_of(wanted)), strict=True)
    assert sorted(at[0].tolist()) == [0, 2, 3]
    assert set(rows[0]["raw_text"].to_pylist()) == {before["raw_text"][0].as_py(), before["raw_text"][20].as_py()}


def test_a_reader_that_lists_before_and_reads_after_finds_everything(store, monkeypatch):
    before = filled(store)
    listed = store.shards()
    assert compact(store, most_parts=0, pack_rows=8)
    real, first = store.shards, iter([listed])
    monkeypatch.setattr(store, "shards", lambda: next(first, None) or real())
    assert read(store).equals(before)


def test_a_compaction_while_the_folder_is_listed_hides_nothing(store, monkeypatch):
    before, real, listings = filled(store), Path.iterdir, []

    def during(folder):
        entries = list(real(folder))
        if folder == store.folder and not listings:
            listings.append(None)
            assert compact(store, most_parts=0, pack_rows=8) == 10  # no pack is seen, and no part is left
        yield from (path for path in entries if path.exists())

    monkeypatch.setattr(Path, "iterdir", during)
    names_seen = store.shards()
    monkeypatch.undo()
    assert names_seen == names(store, packs=True)
    assert read(store).equals(before)


def test_a_snapshot_from_before_finds_everything_after(store):
    before = filled(store)
    snapshot = Snapshot(store)
    snapshot.refresh()
    compact(store, most_parts=0, pack_rows=8)
    more = filled(store, 2, start=40)
    snapshot.refresh()
    assert snapshot.table().equals(more)
    assert len(more) == len(before) + 5


# Damage


def value_of(pack: Path, column: int) -> int:
    """Return the place of a byte of the values of a column, which follow the header of their page."""
    found = pq.read_metadata(pack).row_group(0).column(column)
    return (found.dictionary_page_offset or found.data_page_offset) + found.total_compressed_size - 4


@pytest.mark.parametrize("where", ["images", "texts", "end"])
def test_a_damaged_pack_is_set_aside(store, caplog, where):
    filled(store)
    compact(store, most_parts=0, pack_rows=12)
    pack = store.folder / names(store, packs=True)[0]
    place = {"images": value_of(pack, 0), "texts": value_of(pack, 1), "end": -20}
    content = bytearray(pack.read_bytes())
    content[place[where]] ^= 1
    pack.write_bytes(bytes(content))
    left = store.count() - (0 if where == "end" else Shards(store.folder).rows_of(pack.name))
    snapshot = Snapshot(store)
    with caplog.at_level(logging.WARNING):
        snapshot.refresh()
        if where == "texts":  # found when the whole pack is read
            assert len(snapshot) == 21
            assert not snapshot.check_packs()
        snapshot.refresh()
    assert f"caption shard {pack} moved to quarantine" in caplog.text
    assert (store.folder / "quarantine" / pack.name).exists()
    assert len(snapshot) == len(snapshot.table()) == left < 21
    assert snapshot.check_packs()


def test_no_part_is_removed_for_a_damaged_pack(store):
    before = filled(store)
    parts = {name: (store.folder / name).read_bytes() for name in store.shards()}
    compact(store, most_parts=0)
    for name, content in parts.items():  # as if the compaction had been killed before it removed them
        (store.folder / name).write_bytes(content)
    pack = store.folder / names(store, packs=True)[0]
    content = bytearray(pack.read_bytes())
    content[value_of(pack, 1)] ^= 1
    pack.write_bytes(bytes(content))
    assert compact(store, most_parts=0) == len(parts)
    assert (store.folder / "quarantine" / pack.name).exists()
    assert read(store).equals(before)


def test_a_part_that_is_damaged_meanwhile_stops_the_compaction(store, monkeypatch, caplog):
    filled(store)
    parts, real = store.shards(), Shards.read_shard

    def spoiled(self, name):
        if name == parts[-1] and "used" in seen:
            (self.folder / name).write_bytes(b"")
        return real(self, name)

    seen, used = set(), Snapshot.used_rows
    monkeypatch.setattr(Shards, "read_shard", spoiled)
    monkeypatch.setattr(Snapshot, "used_rows", lambda self: seen.add("used") or used(self))
    with caplog.at_level(logging.WARNING):
        compact(store, most_parts=0, pack_rows=8)
    assert "was not compacted: a shard is damaged" in caplog.text
    monkeypatch.undo()
    assert 17 <= len(read(store)) < 21


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_a_warning(store, monkeypatch, caplog, code):
    before = filled(store)

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("captioning.store.shards.atomic_path", full)
    with caplog.at_level(logging.WARNING):
        assert compact(store, most_parts=0) == 0
    assert f"was not compacted: [Errno {code}]" in caplog.text
    assert read(store).equals(before)


def test_one_process_compacts_at_a_time(store):
    filled(store)
    with lock(store.folder / "claims" / "compaction"):
        assert compact(store, most_parts=0) == 0
    assert len(names(store, packs=False)) == 10
    assert compact(store, most_parts=0) == 10


def test_all_stores_of_a_root_are_compacted(tmp_path):
    stores = [CaptionStore(tmp_path, replace(WHO, fingerprint=name * 32)) for name in "ab"]
    for store in stores:
        filled(store, 3)
    (tmp_path / "captions" / "hub.json").write_text("{}")
    assert compact_all(tmp_path) == 6
    assert compact_all(tmp_path / "absent") == 0
    assert [len(store.shards()) for store in stores] == [1, 1]


def test_readers_writers_and_compactions_at_once(store):
    def write(worker: int) -> None:
        for i in range(12):
            store.append([row(worker * 100 + i, "t"), row(9999, "t")])

    def compact_often(_: int) -> None:
        for _ in range(8):
            compact(store, most_parts=2, pack_rows=16)

    def look(_: int) -> None:
        snapshot, seen = Snapshot(store), 0
        for _ in range(8):
            snapshot.refresh()
            assert len(snapshot) >= seen
            seen = len(snapshot)

    with ThreadPoolExecutor(6) as executor:
        jobs = [executor.submit(work, i) for i in range(2) for work in (write, compact_often, look)]
        for job in jobs:
            job.result()
    expected = sorted([worker * 100 + i for worker in range(2) for i in range(12)] + [9999])
    assert [int(image, 16) for image in read(store)["image_sha256"].to_pylist()] == expected
    assert not (store.folder / "quarantine").exists()


# Kills: a process ends, without any cleaning up, just before each of its operations on files.


def prepared(folder: Path) -> tuple[Shards, pa.Table]:
    """Return a store with a full pack, a small one, and parts, of which some have images of the packs."""
    store = CaptionStore(folder, WHO)
    filled(store, 5)
    compact(store, most_parts=0, pack_rows=8)
    filled(store, 3, start=1)
    return store, filled(store, 3, start=10)


def compact_small(store: Shards) -> None:
    compact(store, most_parts=0, pack_rows=8)


def test_killed_before_any_operation_on_a_file_no_caption_is_lost_or_changed(tmp_path):
    template, expected = prepared(tmp_path / "template")

    def copied(number: int) -> Shards:
        shutil.copytree(tmp_path / "template", tmp_path / f"at-{number}")
        return Shards(tmp_path / f"at-{number}" / template.folder.relative_to(tmp_path / "template"))

    whole = copied(-1)
    steps = operations(partial(compact_small, whole), whole.folder)
    assert len(steps) > 30
    assert {"open", "os.rename", "os.remove"} <= set(steps)
    for number, step in enumerate(steps):
        store = copied(number)
        die_at(number, partial(compact_small, store), store.folder)
        assert read(store).equals(expected), (number, step)
        compact_small(store)
        assert read(store).equals(expected), (number, step)
        assert names(store, packs=False) == []
        assert not (store.folder / "quarantine").exists()


def test_the_schema_of_a_pack_is_that_of_a_part(store):
    filled(store)
    compact(store, most_parts=0)
    assert pq.read_schema(store.folder / names(store, packs=True)[0]).equals(SHARD, check_metadata=True)
