"""The index stage: its files, what makes it run again, unusable folders, and folders that change during a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import struct
import time
import zlib
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from data.artifacts.digests import Stamp
from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import ConfigError, DataError, RetryableError
from data.images import decode as images_module
from data.images.root import find_root
from data.index.examine import Reading, examine
from data.index.stage import index, survey
from data.schemas import IMAGES, REJECTED
from data.splits import SPLITS
from tests.helpers.data_trees import MARKET, MARKET_JUNK, TURNED, market, picture, put, settle


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("data.files.os.fsync", lambda handle: None)


def config_of(root, reader="market1501", **options):
    return DatasetConfig(reader=reader, root=str(root), **options)


def frame(outcome, name="images"):
    return pd.read_parquet(outcome.made.ref.folder / f"{name}.parquet")


def described(outcome):
    return json.loads((outcome.made.ref.folder / "dataset.json").read_text())


def rejected_of(outcome):
    return dict(frame(outcome, "rejected")[["path", "reason"]].itertuples(index=False))


# What is written


def test_images_are_those_of_the_disk(store, root):
    outcome = index(store, config=config_of(root))
    images = frame(outcome)
    assert pq.read_schema(outcome.made.ref.folder / "images.parquet").equals(IMAGES, check_metadata=True)
    assert pq.read_schema(outcome.made.ref.folder / "rejected.parquet").equals(REJECTED, check_metadata=True)
    assert list(zip(images["split"], images["path"], strict=True)) == sorted((v[0], k) for k, v in MARKET.items())
    for row in images.itertuples():
        content = (root / row.path).read_bytes()
        assert (row.split, row.pid, row.camid) == MARKET[row.path]
        assert (row.sha256, row.size) == (hashlib.sha256(content).hexdigest(), len(content))
        with Image.open(root / row.path) as image:
            assert (row.width, row.height) == image.size
    assert (
        len(outcome.found.records),
        len(outcome.found.rejected),
        outcome.found.n_read,
        outcome.images.root,
    ) == (10, 0, 10, root)


def test_dataset_json(store, root):
    put(root, "query/holiday.jpg")
    outcome = index(store, config=config_of(root, name="My people"))
    assert described(outcome) == {
        "name": "My people",
        "reader": "market1501",
        "version": "without junk",
        "dataset_hash": outcome.found.dataset_hash,
        "counts": {
            "train": {"images": 4, "identities": 2, "cameras": 4},
            "query": {"images": 2, "identities": 2, "cameras": 2},
            "gallery": {"images": 4, "identities": 2, "cameras": 2},  # the distractor 0 is not counted
        },
        "junk_left_out": len(MARKET_JUNK),
        "rejected": 1,
        "rejected_by_reason": {"bad_name": 1},
        "notices": list(outcome.found.notices),
    }
    assert any("1 file(s) or row(s) rejected: 1 bad_name" in notice for notice in outcome.found.notices)
    assert any("2 junk image(s)" in notice for notice in outcome.found.notices)
    assert str(root) not in (outcome.made.ref.folder / "dataset.json").read_text()


def test_identity_zero_is_a_person_where_one_counts_from_zero(store, tmp_path):
    rows = [("0.jpg", "train", 0, 1), ("1.jpg", "query", 1, 1), ("2.jpg", "gallery", 1, 2)]
    put(tmp_path / "set", *(row[0] for row in rows))
    pd.DataFrame(rows, columns=["path", "split", "pid", "camid"]).to_csv(tmp_path / "set" / "manifest.csv", index=False)
    counts = described(index(store, config=config_of(tmp_path / "set", "manifest")))["counts"]
    assert {split: counts[split]["identities"] for split in counts} == {"train": 1, "query": 1, "gallery": 1}


def bomb(width, height):
    """Return a small PNG whose header claims a huge size."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


BAD = {
    "bounding_box_train/0002_c1s1_000451_90.jpg": (b"", "empty_file"),
    "bounding_box_train/0002_c1s1_000451_91.jpg": (b"<html>404</html>", "not_an_image"),
    "query/0001_c1s1_001051_90.jpg": (picture(5, size=(64, 128))[:-300], "truncated"),
    "bounding_box_test/0001_c2s1_000301_90.jpg": (bomb(20_000, 20_000), "too_large"),
    "bounding_box_test/0001_c2s1_000301_91.jpg": (bomb(64, 128), "truncated"),
    "bounding_box_test/0001_c2s1.jpg": (picture(6), "bad_name"),
}


def add_bad(root):
    for path, (content, _) in BAD.items():
        (root / path).write_bytes(content)
    settle()
    return {path: reason for path, (_, reason) in BAD.items()}


def test_unusable_files_are_rows_and_the_run_goes_on(store, root):
    expected = add_bad(root)
    outcome = index(store, config=config_of(root))
    assert rejected_of(outcome) == expected
    assert (len(outcome.found.records), len(outcome.found.rejected)) == (10, len(BAD))
    assert all(frame(outcome, "rejected")["detail"].str.len() > 0)
    (told,) = [notice for notice in outcome.found.notices if "rejected" in notice]
    assert told.startswith("6 file(s) or row(s) rejected")
    assert all(reason in told for reason in set(expected.values()))
    again = index(store, config=config_of(root))
    assert (again.found.n_read, again.made.cached, again.found.notices) == (0, True, outcome.found.notices)


def test_max_pixels(store, root):
    outcome = index(store, config=config_of(root, max_pixels=8 * 16))
    assert len(outcome.found.rejected) == 0
    put(root, "query/0001_c1s1_001051_95.jpg")
    (root / "query/0001_c1s1_001051_95.jpg").write_bytes(picture(1, size=(9, 16)))
    outcome = index(store, config=config_of(root, max_pixels=8 * 16))
    assert rejected_of(outcome) == {"query/0001_c1s1_001051_95.jpg": "too_large"}
    assert (
        len(index(store, config=config_of(root)).found.rejected) == 0
    )  # the remembered decoding was for another limit


@pytest.mark.parametrize(
    ("size", "settings", "reason"),
    [
        ((1, 1), {}, "too_small"),
        ((7, 20), {}, "too_small"),
        ((8, 20), {}, None),
        ((7, 20), {"min_side": 7}, None),
        ((1, 1), {"min_side": 1}, None),
        ((10_000, 10), {}, "bad_aspect"),
        ((8, 81), {}, "bad_aspect"),
        ((80, 8), {}, None),
        ((21, 10), {"max_aspect": 2}, "bad_aspect"),
        ((10, 20), {"max_aspect": 2}, None),
    ],
)
def test_images_too_small_or_too_long_for_a_person_are_rows(store, root, size, settings, reason):
    path = "query/0001_c1s1_001051_95.jpg"
    (root / path).write_bytes(picture(1, size=size))
    outcome = index(store, config=config_of(root, **settings))
    assert rejected_of(outcome) == ({path: reason} if reason else {})
    if reason:
        (detail,) = frame(outcome, "rejected")["detail"]
        assert detail.startswith(f"{size[0]} x {size[1]} pixels; ")
        assert ("data.min_side=8" if reason == "too_small" else "data.max_aspect=") in detail


def test_limits_of_the_shape_that_reject_nothing_change_no_fingerprint(store, root):
    first = index(store, config=config_of(root))
    again = index(store, config=config_of(root, min_side=3, max_aspect=99))
    assert (again.made.cached, again.found.n_decoded, again.made.ref) == (True, 0, first.made.ref)


def test_a_transparent_image_is_rejected_and_one_of_one_color_gets_a_notice(store, root):
    Image.new("RGBA", (20, 40), (200, 0, 0, 0)).save(root / "query/0001_c1s1_001051_95.png")
    Image.new("RGB", (20, 40), (200, 0, 0)).save(root / "query/0001_c1s1_001051_96.jpg")
    Image.new("RGB", (20, 40), (0, 0, 0)).save(root / "query/0001_c1s1_001051_97.png")
    settle()
    for _ in range(2):  # the second time nothing is decoded
        outcome = index(store, config=config_of(root))
        assert rejected_of(outcome) == {"query/0001_c1s1_001051_95.png": "blank"}
        (told,) = [notice for notice in outcome.found.notices if "one color" in notice]
        assert told.startswith("2 image(s) are of one color, such as query/0001_c1s1_001051_96.jpg")
    assert outcome.found.n_decoded == 0


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("error", [TypeError, AttributeError, struct.error, RecursionError, MemoryError, SyntaxError])
def test_the_index_continues_after_any_error_of_the_decoder(store, root, monkeypatch, error, workers):
    bad = (root / TARGET).read_bytes()
    for number in range(60):  # more than one chunk
        put(root, f"bounding_box_train/0007_c6s4_002202_{number + 10}.jpg", first_seed=number + 100)
    settle()
    real = images_module.without_metadata

    def fail(content):
        if content == bad:
            raise error
        return real(content)

    monkeypatch.setattr(images_module, "without_metadata", fail)
    outcome = index(store, config=config_of(root, workers=workers))
    assert rejected_of(outcome) == {TARGET: "out_of_memory" if error is MemoryError else "truncated"}
    assert len(outcome.found.records) == 69
    monkeypatch.undo()
    again = index(store, config=config_of(root))
    # A reason in the file itself is remembered; running out of memory is not.
    assert (len(again.found.rejected), again.found.n_read) == ((0, 1) if error is MemoryError else (1, 0))


def test_odd_exif_is_used_upright(store, root):
    Image.open(root / TARGET).resize((30, 12)).save(root / "query/0001_c1s1_001051_95.jpg", exif=TURNED)
    images = frame(index(store, config=config_of(root))).set_index("path")
    assert images.loc["query/0001_c1s1_001051_95.jpg", ["width", "height"]].tolist() == [12, 30]


def test_upright_size_of_a_rotated_photograph(store, root):
    image = Image.new("RGB", (20, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "query" / "0001_c1s1_001051_96.jpg", exif=exif)
    images = frame(index(store, config=config_of(root))).set_index("path")
    row = images.loc["query/0001_c1s1_001051_96.jpg"]
    assert (row["width"], row["height"]) == (10, 20)


def test_a_file_that_may_not_be_read_is_a_row(store, root, monkeypatch):
    real = os.open

    def guarded(path, *args, **options):
        if str(path).endswith("0001_c1s1_001051_00.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **options)

    shutil.copy(root / "query/0001_c1s1_001051_00.jpg", root / "query/0001_c1s1_001051_55.jpg")
    monkeypatch.setattr("data.images.decode.os.open", guarded)
    assert rejected_of(index(store, config=config_of(root))) == {"query/0001_c1s1_001051_00.jpg": "unreadable"}
    monkeypatch.undo()
    assert len(index(store, config=config_of(root)).found.rejected) == 0  # its failure was not remembered


# The same data, the same index


def test_an_unchanged_folder_is_not_read_again(store, root, monkeypatch):
    add_bad(root)
    first = index(store, config=config_of(root))
    real = os.open

    def guarded(path, *args, **options):
        assert root not in Path(path).parents, f"{path} was read"
        return real(path, *args, **options)

    monkeypatch.setattr("data.images.decode.os.open", guarded)
    second = index(store, config=config_of(root))
    assert (second.found.n_read, second.found.n_decoded, second.made.cached) == (0, 0, True)
    assert (second.made.ref, second.found.dataset_hash) == (first.made.ref, first.found.dataset_hash)


def test_reread_reads_everything_and_decodes_nothing(store, root):
    first = index(store, config=config_of(root))
    again = index(store, config=config_of(root), reread=True)
    assert (again.found.n_read, again.found.n_decoded, again.made.ref) == (10, 0, first.made.ref)


def test_reread_finds_what_size_and_times_hide(store, root):
    """As after bit rot: the remembered digest is that of other bytes."""
    index(store, config=config_of(root))
    path = root / "query/0001_c1s1_001051_00.jpg"
    with sqlite3.connect(store.memo.path) as memo:
        (sha256,) = memo.execute("SELECT sha256 FROM digests WHERE path = ?", (os.fsencode(path),)).fetchone()
        for table in ("digests", "checks"):
            memo.execute(f"UPDATE {table} SET sha256 = ? WHERE sha256 = ?", ("0" * 64, sha256))
        memo.execute("DROP TABLE IF EXISTS trees")
    memo.close()
    assert "0" * 64 in set(frame(index(store, config=config_of(root)))["sha256"])
    assert sha256 in set(frame(index(store, config=config_of(root), reread=True))["sha256"])
    assert sha256 in set(frame(index(store, config=config_of(root)))["sha256"])


def test_touched_files_are_read_but_change_nothing(store, root):
    first = index(store, config=config_of(root))
    os.utime(root / "query/0001_c1s1_001051_00.jpg", (1, 1))
    again = index(store, config=config_of(root))
    assert (again.found.n_read, again.found.n_decoded, again.made) == (
        1,
        0,
        first.made.__class__(ref=first.made.ref, cached=True),
    )


def test_a_copy_elsewhere_is_the_same_dataset(store, root, tmp_path):
    first = index(store, config=config_of(root))
    shutil.copytree(root, tmp_path / "elsewhere" / "Market")
    moved = index(store, config=config_of(tmp_path / "elsewhere"))
    assert (moved.made.ref, moved.made.cached, moved.found.n_read) == (first.made.ref, True, 10)
    assert moved.images.root == tmp_path / "elsewhere" / "Market"


def test_the_order_of_the_disk_and_the_threads_do_not_matter(tmp_path):
    names = [f"bounding_box_train/{n:04d}_c1s1_000451_03.jpg" for n in range(10, 110)] + list(MARKET)
    outcomes = []
    for number, (ordered, workers) in enumerate([(names, 1), (names[::-1], 1), (names[::-1], 4), (names, 0)]):
        for seed, path in sorted(enumerate(names), key=lambda item: ordered.index(item[1])):
            put(tmp_path / f"set{number}", path, first_seed=seed)
        for path, (content, _) in BAD.items():
            (tmp_path / f"set{number}" / path).write_bytes(content)
        store = ArtifactStore(tmp_path / f"store{number}")
        outcomes.append(index(store, config=config_of(tmp_path / f"set{number}", workers=workers)))
    assert (
        len({(o.made.ref.fingerprint, o.made.ref.content, o.found.n_read, len(o.found.rejected)) for o in outcomes})
        == 1
    )


def change_a_byte(root):
    path = root / "bounding_box_train/0002_c1s1_000451_03.jpg"
    path.write_bytes(path.read_bytes() + b"\0")


def change_a_byte_and_hide_it(root):
    path = root / "bounding_box_train/0002_c1s1_000451_03.jpg"
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_an_identity(root):
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").rename(root / "bounding_box_train/0009_c1s1_000451_03.jpg")


def change_a_camera(root):
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").rename(root / "bounding_box_train/0002_c2s1_000451_03.jpg")


def change_a_path(root):
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").rename(root / "bounding_box_train/0002_c1s1_000451_04.jpg")


def change_a_split(root):
    (root / "bounding_box_test/0000_c1s1_000151_01.jpg").rename(root / "query/0000_c1s1_000151_01.jpg")


def swap_two_files(root):
    one, two = root / "bounding_box_train/0002_c1s1_000451_03.jpg", root / "bounding_box_train/0007_c6s4_002202_05.jpg"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def remove_a_file(root):
    (root / "bounding_box_train/0002_c1s1_000451_03.jpg").unlink()


@pytest.mark.parametrize(
    "change",
    [
        change_a_byte,
        change_a_byte_and_hide_it,
        change_an_identity,
        change_a_camera,
        change_a_path,
        change_a_split,
        swap_two_files,
        remove_a_file,
    ],
)
def test_every_change_changes_the_hash(store, root, change):
    first = index(store, config=config_of(root))
    change(root)
    second = index(store, config=config_of(root))
    assert second.found.dataset_hash != first.found.dataset_hash
    assert not second.made.cached
    assert second.found.n_read <= 2
    assert index(store, config=config_of(root)).found.dataset_hash == second.found.dataset_hash


def test_the_hash_is_the_documented_one(tmp_path):
    """Computed by hand, so that a change of the format, which would rerun every stage, is noticed."""
    pixel = bytes.fromhex("47494638396101000100800000ff0000000000 2c000000000100010000 0202440100 3b".replace(" ", ""))
    rows = [("q.gif", "query", 2, 1), ("g.gif", "gallery", 2, 2), ("t.gif", "train", 1, 1)]
    for number, (path, *_) in enumerate(rows):
        (tmp_path / path).write_bytes(pixel + bytes([number]))
    pd.DataFrame(rows, columns=["path", "split", "pid", "camid"]).to_csv(tmp_path / "manifest.csv", index=False)
    found = survey(ArtifactStore(tmp_path / "store"), config=config_of(tmp_path, "manifest", min_side=1))
    head = hashlib.sha256(b'{"reader":"manifest","version":""}').hexdigest()
    text = head + "".join(
        f"\n{split}\0{path}\0{pid}\0{camid}\0{hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()}"
        for path, split, pid, camid in sorted(rows, key=lambda row: (row[1], row[0]))
    )
    assert found.dataset_hash == hashlib.sha256(text.encode()).hexdigest()[:32] == "afe4cca5af1f9958864b70ee2fa0e386"


def test_a_rejected_file_is_no_part_of_the_dataset_hash_but_of_the_index(store, root):
    first = index(store, config=config_of(root))
    put(root, "query/holiday.jpg")
    second = index(store, config=config_of(root))
    assert second.found.dataset_hash == first.found.dataset_hash
    assert not second.made.cached


def test_one_new_image_costs_one_read(store, root):
    index(store, config=config_of(root))
    put(root, "query/0001_c1s1_001051_77.jpg", first_seed=77)
    outcome = index(store, config=config_of(root))
    assert (len(outcome.found.records), outcome.found.n_read, outcome.found.n_decoded) == (11, 1, 1)


# The artifact and the digest memo


@pytest.mark.parametrize("name", ["images.parquet", "rejected.parquet", "dataset.json", "artifact.json"])
def test_a_damaged_artifact_is_made_again_without_reading_images(store, root, name):
    first = index(store, config=config_of(root))
    path = first.made.ref.folder / name
    path.write_bytes(path.read_bytes()[:-7])
    again = index(store, config=config_of(root))
    assert (again.made.cached, again.found.n_read, again.made.ref) == (False, 0, first.made.ref)
    assert index(store, config=config_of(root)).made.cached


@pytest.mark.parametrize("damage", ["deleted", "garbage", "truncated"])
def test_the_memory_of_digests_can_be_lost(store, root, damage):
    first = index(store, config=config_of(root))
    path = store.memo.path
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"garbage" * 1000 if damage == "garbage" else path.read_bytes()[:5000])
    again = index(store, config=config_of(root))
    assert (again.made.ref, again.made.cached, again.found.n_read) == (first.made.ref, True, 10)
    assert index(store, config=config_of(root)).found.n_read == 0


def test_files_of_the_last_tick_are_read_again(store, tmp_path, monkeypatch):
    """A file written a moment ago may change again without a change of its times, so its digest is not remembered."""
    root = market(tmp_path / "fresh")
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # long before the files' own times
    assert index(store, config=config_of(root)).found.n_read == 10
    assert index(store, config=config_of(root)).found.n_read == 10


def test_files_of_any_time_are_indexed_and_a_change_of_it_is_noticed(store, root):
    path, limit = root / next(iter(MARKET)), (1 << 63) // 10**9
    times = [limit - 1, limit + 1, 15_000_000_000, -2_000_000_000]
    for number, seconds in enumerate(times):
        os.utime(path, (seconds, seconds))
        if path.stat().st_mtime != seconds:
            pytest.skip("this file system cannot store these times")
        settle()
        assert index(store, config=config_of(root)).found.n_read == (1 if number else 10)
        assert index(store, config=config_of(root)).found.n_read == 0


def test_times_that_need_more_than_64_bits_stay_different():
    def stamp(mtime, ctime):
        return Stamp.of(SimpleNamespace(st_size=1, st_mtime_ns=mtime, st_ctime_ns=ctime))

    most = (1 << 63) - 1
    assert (stamp(most, most), stamp(most + 1, most + 2)) == ((1, most, most), (1, -most - 1, most))
    assert stamp(-(1 << 62), -1) == (1, -(1 << 62), -1)
    assert not stamp(1, 1 << 64).settled(most - 1)


def examine_market(store, root, **options):
    how = Reading(max_pixels=DatasetConfig().max_pixels, **options)
    return examine(root, pa.array(MARKET, pa.large_string()), store.memo, how)


def test_a_killed_first_run_is_not_in_vain(store, root):

    def die(done, total, note):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine_market(store, root, workers=2, progress=die, chunk=2, remember_every=2)
    assert index(store, config=config_of(root)).found.n_read == 6


def test_progress_reaches_the_end(store, root):
    calls = []
    examine_market(store, root, workers=0, progress=lambda *call: calls.append(call), chunk=3)
    assert [call[:2] for call in calls] == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_survey_writes_no_artifact(store, root):
    found = survey(store, config=config_of(root))
    assert len(found.records) == 10
    assert not (store.root / "stages").exists()


# Unusable datasets


def refusal(store, config):
    with pytest.raises(DataError) as error:
        index(store, config=config)
    assert not (store.root / "stages").exists()
    text = str(error.value)
    assert config.root in text
    return text


def test_no_usable_image(store, tmp_path):
    root = tmp_path / "set"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True)
    assert "no file name matches. Check data.root" in refusal(store, config_of(root))
    add_bad(root)
    text = refusal(store, config_of(root))
    assert "1 empty_file (such as bounding_box_train/0002_c1s1_000451_90.jpg" in text


@pytest.mark.parametrize(
    ("folder", "split"), [("bounding_box_train", "train"), ("query", "query"), ("bounding_box_test", "gallery")]
)
def test_an_empty_split(store, root, folder, split):
    shutil.rmtree(root / folder)
    assert f"no usable image in {split}." in refusal(store, config_of(root, require_splits=SPLITS))
    (root / folder).mkdir()
    (root / folder / "0001_c1s1_001051_90.jpg").write_bytes(b"")
    text = refusal(store, config_of(root, require_splits=SPLITS))
    assert "1 empty_file" in text
    assert "data.require_splits" in text
    others = tuple({"train", "query", "gallery"} - {split})
    assert len(index(store, config=config_of(root, require_splits=others)).found.rejected) == 1
    assert len(index(store, config=config_of(root)).found.rejected) == 1


def test_a_folder_to_caption_only_needs_no_splits(store, tmp_path):
    put(tmp_path / "set", "a.jpg", "b.jpg")
    rows = [("a.jpg", "train", 1, 0), ("b.jpg", "train", 1, 0)]
    pd.DataFrame(rows, columns=["path", "split", "pid", "camid"]).to_csv(tmp_path / "set" / "manifest.csv", index=False)
    outcome = index(store, config=config_of(tmp_path / "set", "manifest"))
    assert len(outcome.found.records) == 2
    assert "no usable image in query, gallery" in refusal(
        ArtifactStore(tmp_path / "other"), config_of(tmp_path / "set", "manifest", require_splits=SPLITS)
    )


def test_an_identity_in_training_and_test(store, root):
    put(root, "bounding_box_train/0003_c1s1_000451_03.jpg", first_seed=50)
    put(root, "bounding_box_test/0002_c1s1_000451_09.jpg", first_seed=60)
    text = refusal(store, config_of(root))
    assert "training shares 2 identities with query or gallery, such as 2 (train: bounding_box_train/0002" in text
    assert "bounding_box_train/0003_c1s1_000451_03.jpg" in text


def test_identical_files_of_two_people(store, root):
    shutil.copy(
        root / "bounding_box_train/0002_c1s1_000451_03.jpg", root / "bounding_box_train/0007_c1s1_000451_99.jpg"
    )
    text = refusal(store, config_of(root))
    assert "0002_c1s1_000451_03.jpg (pid 2) and bounding_box_train/0007_c1s1_000451_99.jpg (pid 7)" in text
    assert "data.allow_identical=true" in text
    outcome = index(store, config=config_of(root, allow_identical=True))
    assert any("another identity" in notice for notice in outcome.found.notices)


def test_identical_files_of_one_person_or_of_a_distractor_are_used(store, root):
    source = root / "bounding_box_train/0002_c1s1_000451_03.jpg"
    shutil.copy(source, root / "bounding_box_train/0002_c1s1_000451_99.jpg")
    shutil.copy(source, root / "bounding_box_test/0000_c1s1_000451_99.jpg")
    assert len(index(store, config=config_of(root)).found.records) == 12


def one_camera(root):
    rows = [
        (f"{n}.jpg", "train" if n < 4 else "query" if n < 6 else "gallery", n % 2 + 1 + n // 4, 0) for n in range(8)
    ]
    rows = [(path, split, pid if split == "train" else pid + 10, camid) for path, split, pid, camid in rows]
    rows = [(path, split, 20 + int(path[0]) % 2 if split != "train" else pid, c) for path, split, pid, c in rows]
    put(root, *(row[0] for row in rows))
    return pd.DataFrame(rows, columns=["path", "split", "pid", "camid"])


def test_what_can_be_evaluated_is_decided_where_evaluation_is_configured(store, tmp_path):
    """Recipes share an index: one excludes the query's camera, another does not."""
    root = tmp_path / "set"
    one_camera(root).to_csv(root / "manifest.csv", index=False)
    outcome = index(store, config=config_of(root, "manifest"))
    assert (len(outcome.found.records), outcome.found.notices) == (8, ())


def manifest_of(root, rows):
    """Write images with labels and a manifest; rows: (path, seed of its bytes, split, pid, camid)."""
    root.mkdir(exist_ok=True)
    for path, seed, *_ in rows:
        (root / path).write_bytes(picture(seed))
    table = pd.DataFrame([(row[0], *row[2:]) for row in rows], columns=["path", "split", "pid", "camid"])
    table.to_csv(root / "manifest.csv", index=False)
    return config_of(root, "manifest")


ZERO_ONCE = [("a.jpg", 1, "train", 5, 1), ("b.jpg", 2, "query", 6, 1), ("c.jpg", 3, "gallery", 6, 2)]


@pytest.mark.parametrize(
    ("here", "there", "refused"),
    [
        ("train", "query", True),
        ("train", "gallery", True),
        ("query", "gallery", False),
        ("gallery", "gallery", False),
        ("train", "train", False),
    ],
)
def test_identity_zero_is_checked_like_any_other_unless_only_the_gallery_has_it(store, tmp_path, here, there, refused):
    rows = [*ZERO_ONCE, ("d.jpg", 4, here, 0, 1), ("e.jpg", 5, there, 0, 2)]
    config = manifest_of(tmp_path / "set", rows)
    if refused:
        text = refusal(store, config)
        assert "training shares 1 identity with query or gallery, such as 0 (train: d.jpg," in text
        assert "0 is a distractor only if it occurs nowhere but in the gallery" in text
        return
    counts = described(index(store, config=config))["counts"]
    zeros = {split: 0 in {row[3] for row in rows if row[2] == split} for split in counts}
    expected = {split: 1 + (zeros[split] and {here, there} != {"gallery"}) for split in counts}
    assert {split: counts[split]["identities"] for split in counts} == expected


def test_equal_bytes_in_query_and_gallery_get_a_notice_with_their_number(store, tmp_path):
    rows = [*ZERO_ONCE, ("d.jpg", 2, "gallery", 6, 2), ("e.jpg", 2, "gallery", 6, 3), ("f.jpg", 9, "query", 6, 1)]
    (notice,) = index(store, config=manifest_of(tmp_path / "set", rows)).found.notices
    assert notice.startswith("2 gallery image(s) are identical to a query, such as d.jpg (gallery) and b.jpg (query)")


@pytest.mark.parametrize(("seed", "place"), [(1, "a.jpg (train)"), (2, "b.jpg (query)"), (3, "c.jpg (gallery)")])
def test_a_distractor_that_is_a_known_person_gets_a_notice(store, tmp_path, seed, place):
    rows = [*ZERO_ONCE, ("d.jpg", seed, "gallery", 0, 2)]
    (notice,) = index(store, config=manifest_of(tmp_path / "set", rows)).found.notices
    assert notice.startswith("1 distractor(s) are identical to an image of a known person, such as d.jpg (gallery)")
    assert f" and {place}, and " in notice


def test_equal_bytes_of_identity_zero_as_a_person_are_another_identitys(store, tmp_path):
    text = refusal(store, manifest_of(tmp_path / "set", [*ZERO_ONCE, ("d.jpg", 1, "train", 0, 2)]))
    assert "1 image(s) are identical to an image of another identity, such as a.jpg (pid 5) and d.jpg (pid 0)" in text


def test_equal_bytes_of_distractors_and_junk_are_fine(store, tmp_path):
    rows = [*ZERO_ONCE, *((f"{n}.jpg", 7, "gallery", 0, 2) for n in range(3)), ("j.jpg", 2, "gallery", -1, 1)]
    config = manifest_of(tmp_path / "set", rows)
    assert index(store, config=config.model_copy(update={"keep_junk": True})).found.notices == ()


def test_all_problems_are_raised_together(store, root):
    shutil.rmtree(root / "query")
    put(root, "bounding_box_train/0003_c1s1_000451_03.jpg", first_seed=50)
    text = refusal(store, config_of(root, require_splits=SPLITS))
    assert "2 problems" in text
    assert "no usable image in query" in text
    assert "training shares 1 identity" in text


def test_a_deleted_dataset_is_a_clear_failure_and_old_artifacts_stay(store, root):
    outcome = index(store, config=config_of(root))
    shutil.rmtree(root)
    with pytest.raises(DataError, match="does not exist"):
        index(store, config=config_of(root))
    assert store.find("index", outcome.made.ref.fingerprint) == outcome.made.ref


# Folders that change while they are read


@pytest.fixture
def meddle(monkeypatch, root):
    """Return a function that runs `action(call)` each time a file has been read, before its stamp is taken again."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    real, calls = os.stat, []

    def install(action):
        def stat(path, **options):
            if isinstance(path, str) and root in Path(path).parents:
                calls.append(path)
                action(len(calls))
            return real(path, **options)

        monkeypatch.setattr(os, "stat", stat)

    return install


TARGET = "query/0001_c1s1_001051_00.jpg"


def test_a_file_that_changes_once_is_read_again(store, root, meddle):
    # Call 22 comes after the sixth file was read: one stamp for each of ten files, then two per file.
    def append(call):
        if call in (16, 22, 27):
            for path in root.glob("query/*_00.jpg"):
                path.write_bytes(path.read_bytes() + b"\0")

    meddle(append)
    outcome = index(store, config=config_of(root))
    for row in frame(outcome).itertuples():
        assert row.sha256 == hashlib.sha256((root / row.path).read_bytes()).hexdigest()


def test_a_file_that_keeps_changing_is_named(store, root, meddle):
    meddle(lambda _: (root / TARGET).write_bytes(os.urandom(40)))
    with pytest.raises(RetryableError, match=r"0001_c1s1_001051_00\.jpg changed.*run again"):
        index(store, config=config_of(root))
    assert not (store.root / "stages").exists()


@pytest.mark.parametrize("call", [1, 10, 11, 12, 25, 31])
def test_a_file_that_vanishes_is_not_indexed(store, root, meddle, call):
    meddle(lambda number: (root / "query/0003_c5s1_015245_00.jpg").unlink(missing_ok=True) if number == call else None)
    outcome = index(store, config=config_of(root))
    assert set(frame(outcome)["path"]) == set(MARKET) - {"query/0003_c5s1_015245_00.jpg"}


@pytest.mark.parametrize("call", [1, 15, 30])
def test_a_file_that_comes_is_indexed(store, root, meddle, call):
    new = "query/0003_c5s1_015245_55.jpg"
    meddle(lambda number: put(root, new, first_seed=55) if number == call else None)
    assert set(frame(index(store, config=config_of(root)))["path"]) == {*MARKET, new}


def test_files_that_keep_coming_are_named(store, root, meddle):
    meddle(lambda number: put(root, f"query/0003_c5s1_015245_{number:02d}.jpg", first_seed=number))
    with pytest.raises(RetryableError, match=r"added, removed or relabeled, such as query/0003"):
        index(store, config=config_of(root))


def test_a_manifest_rewritten_meanwhile_is_read_again(store, tmp_path, meddle):
    root = tmp_path / "set"
    table = one_camera(root)
    table.loc[7, "camid"] = 1
    table.to_csv(root / "manifest.csv", index=False)

    def rewrite(call):
        if call == 20:
            table.assign(camid=table["camid"] + 5).to_csv(root / "manifest.csv", index=False)

    meddle(rewrite)
    assert set(frame(index(store, config=config_of(root, "manifest")))["camid"]) == {5, 6}


def test_paths_of_a_manifest_are_checked_at_once(tmp_path, monkeypatch):
    """A hundred thousand rows must not resolve their folders a hundred thousand times."""
    from data.readers import paths

    root = tmp_path / "set"
    put(root, *(f"a/b/{n}.jpg" for n in range(20)))
    gate, seen = paths.PathGate(root), []
    original = paths.inside
    monkeypatch.setattr(paths, "inside", lambda *args: seen.append(args) or original(*args))
    for n in range(20):
        assert gate.admit(f"a/b/{n}.jpg") == f"a/b/{n}.jpg"
    assert seen == [(root, "a/b")]


def test_a_root_that_is_not_utf8_is_refused_and_read_through_a_link(store, tmp_path):
    root = market(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    settle()
    with pytest.raises(ValidationError, match=r"root\n.*not valid UTF-8 text.*such as a symbolic link to it"):
        config_of(root)
    link = tmp_path / "link"
    link.symlink_to(root)
    assert index(store, config=config_of(link)).found.n_read == 10
    assert index(store, config=config_of(link)).found.n_read == 0


@pytest.mark.parametrize("reader", ["folders", "images"])
def test_artifacts_in_the_folder_of_the_images_are_not_images(tmp_path, reader):
    root = tmp_path / "people"
    put(root, "Ann/1.jpg", "Ann/2.jpg", "Bob/1.jpg", "Bob/2.jpg")
    settle()
    store = ArtifactStore(root / "artifacts")
    config = DatasetConfig(reader=reader, root=str(root))
    first = index(store, config=config)
    put(store.root, "pictures/thumbnail.jpg", first_seed=9)
    again = index(store, config=config)
    assert again.made.cached
    assert again.made.ref == first.made.ref
    assert not again.found.rejected


@pytest.mark.parametrize("reader", ["folders", "images"])
def test_images_in_the_root_of_the_artifacts_are_refused(tmp_path, reader):
    put(tmp_path, "Ann/1.jpg", "Bob/1.jpg")
    with pytest.raises(ConfigError, match=r"is the folder of the artifacts too: set --home to .*/artifacts"):
        survey(ArtifactStore(tmp_path), config=DatasetConfig(reader=reader, root=str(tmp_path)))


def test_images_that_were_just_written_are_found_and_read_again(store, tmp_path):
    root = market(tmp_path / "new")
    images = index(store, config=config_of(root)).images
    rows = images.rows("path", "sha256").to_pydict()
    assert find_root(store, rows["path"], rows["sha256"]) == root
    with closing(sqlite3.connect(store.memo.path)) as memo:
        times = [row[0] for row in memo.execute("SELECT mtime_ns FROM digests")]
    assert survey(store, config=config_of(root)).n_read == times.count(-1)
