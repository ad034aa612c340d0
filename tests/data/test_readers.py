"""Readers on trees with the real names, list files and quirks of the public datasets."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from data.columns.records import ImageRecord, Records
from data.datasets import DatasetConfig, load_dataset, scan_dataset
from data.errors import ConfigError, DataError
from data.readers.base import Counts, compare_counts
from data.readers.bounding_box import WITHDRAWN
from tests.helpers.data_trees import MARKET, MARKET_FOLDERS, MARKET_JUNK, litter, market, put
from tests.helpers.places import shared_folder


def scan(reader, root, **options):
    return scan_dataset(DatasetConfig(reader=reader, root=str(root), **options))


def labels(scanned):
    return {record.path: (record.split, record.pid, record.camid) for record in scanned.records}


def reasons(scanned):
    return {row.path: row.reason for row in scanned.rejected}


# Market-1501


def test_market_labels_are_those_of_the_names(tmp_path):
    found = scan("market1501", market(tmp_path / "Market-1501-v15.09.15"))
    assert labels(found) == MARKET
    assert found.rejected == []
    assert found.n_junk == len(MARKET_JUNK)
    assert found.root == tmp_path / "Market-1501-v15.09.15"


def test_market_is_sorted_by_split_and_path_in_any_order_of_the_disk(tmp_path):
    put(tmp_path / "a", *MARKET)
    put(tmp_path / "b", *reversed(MARKET))
    first, second = scan("market1501", tmp_path / "a"), scan("market1501", tmp_path / "b")
    assert first.records == second.records
    assert [(r.split, r.path) for r in first.records] == sorted((split, path) for path, (split, _, _) in MARKET.items())


def test_market_junk_can_be_kept(tmp_path):
    found = scan("market1501", market(tmp_path), keep_junk=True)
    assert found.n_junk == 0
    assert labels(found) == MARKET | {MARKET_JUNK[0]: ("gallery", -1, 1), MARKET_JUNK[1]: ("gallery", -1, 6)}


def test_market_wrong_names_are_rows_and_litter_is_not(tmp_path):
    market(tmp_path)
    wrong = ["bounding_box_train/holiday.jpg", "query/0001_c1s1_001051.jpg", "query/x0001_c1s1_001051_00.jpg"]
    wrong += ["bounding_box_test/0001_c1s1_001051_00.txt", "bounding_box_test/٠٠٠١_c1s1_001051_00.jpg"]
    put(tmp_path, *wrong)
    (tmp_path / "query" / "0001_c1s1_001051_77.jpg").mkdir()
    (tmp_path / "query" / "0001_c1s1_001051_78.jpg").symlink_to("nowhere")
    (tmp_path / "query" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"a name in Latin-1")
    found = scan("market1501", tmp_path)
    assert labels(found) == MARKET
    assert reasons(found) == dict.fromkeys(wrong, "bad_name") | {
        "query/0001_c1s1_001051_77.jpg": "not_a_file",
        "query/0001_c1s1_001051_78.jpg": "not_a_file",
        "query/caf\\xe9.jpg": "bad_name",
    }
    assert all("0002_c1s1_000451_03.jpg" in row.detail for row in found.rejected if row.reason == "bad_name")


def test_market_double_extension_of_some_copies(tmp_path):
    put(tmp_path, *MARKET, "query/0009_c1s1_001051_00.jpg.jpg")
    assert labels(scan("market1501", tmp_path))["query/0009_c1s1_001051_00.jpg.jpg"] == ("query", 9, 1)


def test_root_may_be_the_parent_a_link_or_relative(tmp_path, monkeypatch):
    folder = market(tmp_path / "sets" / "Market-1501-v15.09.15")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    expected = scan("market1501", folder)
    for root in (tmp_path / "sets", tmp_path / "link", "sets", "./sets/Market-1501-v15.09.15/"):
        found = scan("market1501", root)
        assert (found.records, found.root) == (expected.records, folder)


def test_wrong_roots_get_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for root, text in [
        ("absent", "does not exist"),
        ("file", "is a file, not a folder"),
        ("empty", "needs the folders bounding_box_train, query, bounding_box_test"),
    ]:
        with pytest.raises(DataError, match=text) as error:
            scan("market1501", tmp_path / root)
        assert str(tmp_path / root) in str(error.value)
        assert "data.root" in str(error.value)
    with pytest.raises(ConfigError, match=r"set data\.root"):
        scan_dataset(DatasetConfig(reader="market1501"))


def test_two_datasets_in_the_parent_are_not_guessed_between(tmp_path):
    market(tmp_path / "one")
    market(tmp_path / "two")
    with pytest.raises(DataError, match=r"more than one dataset \(one, two\)"):
        scan("market1501", tmp_path)


def test_a_missing_split_folder_gets_a_notice(tmp_path):
    market(tmp_path)
    shutil.rmtree(tmp_path / "query")
    assert "the folder query of market1501 does not exist" in scan("market1501", tmp_path).notices


# Published counts


@pytest.mark.parametrize(
    ("reader", "options", "published"),
    [
        ("market1501", {}, {"train": (751, 12936), "query": (750, 3368), "gallery": (750, 15913)}),
        ("dukemtmc_reid", {}, {"train": (702, 16522), "query": (702, 2228), "gallery": (1110, 17661)}),
        ("occluded_duke", {}, {"train": (702, 15618), "query": (519, 2210), "gallery": (1110, 17661)}),
        (
            "cuhk03_np",
            {"version": "labeled"},
            {"train": (767, 7368), "query": (700, 1400), "gallery": (700, 5328)},
        ),
        (
            "cuhk03_np",
            {"version": "detected"},
            {"train": (767, 7365), "query": (700, 1400), "gallery": (700, 5332)},
        ),
        ("veri776", {}, {"train": (576, 37778), "query": (200, 1678), "gallery": (200, 11579)}),
    ],
)
def test_counts_are_the_published_ones(reader, options, published, tmp_path, monkeypatch):
    """A listing of the full size with real names gives no notice; with one image less, it gives exactly one."""
    name = {"market1501": "c1s1_000000", "cuhk03_np": "c1"}.get(reader, "c1_f000")
    folders = dict(zip(("train", "query", "gallery"), MARKET_FOLDERS, strict=True))
    if reader == "veri776":
        name, folders = "c001_000000", {"train": "image_train", "query": "image_query", "gallery": "image_test"}
    base = tmp_path / options.get("version", "")
    for folder in folders.values():
        (base / folder).mkdir(parents=True)
    listing = {}
    for split, (identities, images) in published.items():
        joint = "" if name.endswith("f000") else "_"
        listing[folders[split]] = [f"{n % identities + 1:04d}_{name}{joint}{n}.jpg" for n in range(images)]
    monkeypatch.setattr("data.readers.bounding_box.accepted_files", lambda collector, folder: iter(listing[folder]))
    told = [WITHDRAWN] if "duke" in reader else []
    assert scan(reader, tmp_path, **options).notices == told
    listing[folders["train"]].pop()
    notices = scan(reader, tmp_path, **options).notices
    assert len(notices) == 1 + len(told)
    assert f"published: {published['train'][1]:,}" in notices[-1]


def test_counts_of_junk_when_it_is_kept(tmp_path, monkeypatch):
    """19,732 gallery files are 3,819 junk, 2,798 distractors and 13,115 images of 750 people."""
    for folder in MARKET_FOLDERS:
        (tmp_path / folder).mkdir()
    people = [f"{n % 750 + 1:04d}_c1s1_000000_{n}.jpg" for n in range(13115)]
    others = [f"-1_c1s1_000000_{n}.jpg" for n in range(3819)] + [f"0000_c1s1_000000_{n}.jpg" for n in range(2798)]
    listing = {
        "bounding_box_train": [f"{n % 751 + 1000:04d}_c1s1_000000_{n}.jpg" for n in range(12936)],
        "query": people[:3368],
        "bounding_box_test": people + others,
    }
    monkeypatch.setattr("data.readers.bounding_box.accepted_files", lambda collector, folder: iter(listing[folder]))
    left_out, kept = scan("market1501", tmp_path), scan("market1501", tmp_path, keep_junk=True)
    assert (left_out.notices, left_out.n_junk, len(left_out.records)) == ([], 3819, 12936 + 3368 + 15913)
    assert (kept.notices, kept.n_junk, len(kept.records)) == ([], 0, 12936 + 3368 + 19732)


@pytest.mark.parametrize(("images", "notices"), [(10, 0), (1500, 0), (1700, 1), (8000, 1), (12000, 2)])
def test_a_part_of_a_set_gets_one_mild_notice_and_a_small_set_of_ones_own_none(images, notices):
    records = [ImageRecord(path=f"{n}", split="train", pid=1, camid=1) for n in range(images)]
    found = compare_counts("market1501", Records.of(records), {"train": Counts(751, 12936), "query": Counts(750, 3368)})
    assert len(found) == notices
    assert all("are not comparable with published ones" in notice for notice in (text.lower() for text in found))


# The other person datasets


def test_dukemtmc_and_occluded_duke_with_their_notice(tmp_path):
    put(
        tmp_path,
        "bounding_box_train/0005_c2_f0046985.jpg",
        "query/0033_c1_f0057706.jpg",
        "bounding_box_test/0033_c8_f0057706.jpg",
        "bounding_box_test/0033_c2s1_000001_00.jpg",
    )
    for reader in ("dukemtmc_reid", "occluded_duke"):
        found = scan(reader, tmp_path)
        assert labels(found) == {
            "bounding_box_train/0005_c2_f0046985.jpg": ("train", 5, 2),
            "query/0033_c1_f0057706.jpg": ("query", 33, 1),
            "bounding_box_test/0033_c8_f0057706.jpg": ("gallery", 33, 8),
        }
        assert reasons(found) == {"bounding_box_test/0033_c2s1_000001_00.jpg": "bad_name"}
        assert found.notices[0] == WITHDRAWN
        assert "\n" not in WITHDRAWN


@pytest.mark.parametrize("where", ["", "cuhk03-np", "sets/cuhk03-np"])
def test_cuhk03_np_labeled_and_detected(tmp_path, where):
    base = tmp_path / where
    for version, pid in (("labeled", 1), ("detected", 2)):
        put(base / version, *(f"{folder}/{pid:04d}_c2_{pid}.png" for folder in MARKET_FOLDERS))
    root = tmp_path if where != "sets/cuhk03-np" else tmp_path / "sets"
    for version, pid in (("labeled", 1), ("detected", 2)):
        for place in (root, base / version):
            found = scan("cuhk03_np", place, version=version)
            assert {record.pid for record in found.records} == {pid}
            assert found.version == version
            assert found.root == base / version
    assert scan("cuhk03_np", root).version == "labeled"


MSMT = {
    "list_train.txt": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_003_14_0302noon_0090_2.jpg 1"],
    "list_val.txt": ["0000/0000_001_05_0303morning_0015_0.jpg 0"],
    "list_query.txt": ["0000/0000_000_02_0303morning_0015_0.jpg 0"],
    "list_gallery.txt": ["0000/0000_000_15_0303morning_0015_1.jpg 0", "0001/0001_000_03_0303morning_0015_1.jpg 1"],
}


def msmt(root, train="train", test="test"):
    for name, lines in MSMT.items():
        folder = train if name in ("list_train.txt", "list_val.txt") else test
        put(root, *(f"{folder}/{line.split()[0]}" for line in lines))
        (root / name).write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("folder", "train", "test", "edition"),
    [("MSMT17_V1", "train", "test", "v1"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2", "v2")],
)
def test_msmt17_both_editions(tmp_path, folder, train, test, edition):
    root = msmt(tmp_path / folder, train, test)
    found = scan("msmt17", tmp_path)  # given the parent
    assert found.version == f"{edition} train+val"
    expected = {
        f"{train}/0000/0000_000_01_0303morning_0015_0.jpg": ("train", 1, 1),
        f"{train}/0001/0001_003_14_0302noon_0090_2.jpg": ("train", 2, 14),
        f"{test}/0000/0000_000_02_0303morning_0015_0.jpg": ("query", 10_001, 2),
        f"{test}/0000/0000_000_15_0303morning_0015_1.jpg": ("gallery", 10_001, 15),
        f"{test}/0001/0001_000_03_0303morning_0015_1.jpg": ("gallery", 10_002, 3),
    }
    val = {f"{train}/0000/0000_001_05_0303morning_0015_0.jpg": ("train", 1, 5)}
    assert labels(found) == expected | val
    alone = scan("msmt17", root, include_val=False, version=edition)
    assert labels(alone) == expected
    assert alone.version == f"{edition} train"


def test_msmt17_identities_of_the_halves_never_meet(tmp_path):
    found = scan("msmt17", msmt(tmp_path))
    train = {record.pid for record in found.records if record.split == "train"}
    assert not train & {record.pid for record in found.records if record.split != "train"}
    assert min(record.pid for record in found.records) > 0  # 0 would be a distractor


def test_msmt17_lists_are_not_trusted(tmp_path):
    root = msmt(tmp_path / "MSMT17")
    put(tmp_path, "outside/0000_000_01_0303morning_0015_0.jpg")
    lines = ["../../outside/0000_000_01_0303morning_0015_0.jpg 3", "0009/0009_000_01_0303morning_0015_0.jpg 9"]
    lines += ["0000/0000_000_01_0303morning_0015_0.jpg", "0000/0000_000_01_0303morning_0015_0.jpg x", "", "a b c"]
    put(root, "train/0000/portrait.jpg")
    with (root / "list_train.txt").open("a") as stream:
        stream.write("\r\n".join([*lines, "0000/portrait.jpg 0"]))
    found = scan("msmt17", root)
    assert {(row.path, row.reason) for row in found.rejected} == {
        ("train/../../outside/0000_000_01_0303morning_0015_0.jpg", "outside_root"),
        ("train/0009/0009_000_01_0303morning_0015_0.jpg", "missing"),
        ("0000/0000_000_01_0303morning_0015_0.jpg", "bad_row"),
        ("a", "bad_row"),
        ("train/0000/portrait.jpg", "bad_name"),
    }
    assert len(found.records) == 6


def test_msmt17_with_both_editions_or_none_asks(tmp_path):
    msmt(tmp_path / "both")
    (tmp_path / "both" / "mask_train_v2").mkdir()
    with pytest.raises(DataError, match=r"set data\.version=v1 or data\.version=v2"):
        scan("msmt17", tmp_path / "both")
    assert scan("msmt17", tmp_path / "both", version="v1").version == "v1 train+val"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "list_train.txt").write_text("")
    with pytest.raises(DataError, match="not its images"):
        scan("msmt17", tmp_path / "none")


def test_msmt17_missing_list_gets_a_notice(tmp_path):
    root = msmt(tmp_path)
    (root / "list_val.txt").unlink()
    assert "the list list_val.txt of msmt17 does not exist" in scan("msmt17", root).notices


def test_msmt17_counts_are_the_published_ones(tmp_path, monkeypatch):
    """1,041 + 3,060 people; list_train and list_val together have 32,621 images."""
    monkeypatch.setattr("data.readers.list_files.PathGate.admit", lambda gate, path: path)
    (tmp_path / "train").mkdir()
    sizes = {"train": (1041, 30248), "val": (1041, 2373), "query": (3060, 11659), "gallery": (3060, 82161)}
    for name, (identities, images) in sizes.items():
        lines = (f"0000/0000_{n}_01_{name}.jpg {n % identities}\n" for n in range(images))
        (tmp_path / f"list_{name}.txt").write_text("".join(lines))
    assert scan("msmt17", tmp_path).notices == []
    assert scan("msmt17", tmp_path, include_val=False).notices == []
    with (tmp_path / "list_val.txt").open("a") as stream:
        stream.write("0000/0000_x_01_val.jpg 0\n")
    (notice,) = scan("msmt17", tmp_path).notices
    assert "32,622 images of 1,041 identities; published: 32,621 of 1,041" in notice


# Vehicles


def test_veri776(tmp_path):
    folders = ("image_train", "image_query", "image_test")
    put(
        tmp_path / "VeRi",
        "image_train/0001_c001_00016450_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c020_00030600_0.jpg",
    )
    litter(*(tmp_path / "VeRi" / folder for folder in folders))
    assert labels(scan("veri776", tmp_path)) == {
        "image_train/0001_c001_00016450_0.jpg": ("train", 1, 1),
        "image_query/0002_c002_00030600_0.jpg": ("query", 2, 2),
        "image_test/0002_c020_00030600_0.jpg": ("gallery", 2, 20),
    }


def vehicleid(root):
    train = [(f"{n:07d}", n // 3) for n in range(9)]
    test = [(f"{n:07d}", 100 + n // 4) for n in range(100, 120)]
    put(root, *(f"image/{name}.jpg" for name, _ in train + test))
    (root / "train_test_split").mkdir()
    (root / "train_test_split" / "train_list.txt").write_text("".join(f"{n} {pid}\n" for n, pid in train))
    (root / "train_test_split" / "test_list_800.txt").write_text("".join(f"{n} {pid}\n" for n, pid in test))
    return {pid: {f"image/{n}.jpg" for n, p in test if p == pid} for _, pid in test}


def test_vehicleid_draws_one_gallery_image_an_identity(tmp_path):
    expected = vehicleid(tmp_path / "VehicleID_V1.0")
    draws = []
    for seed in range(10):
        found = scan("vehicleid", tmp_path, split_seed=seed)
        gallery = {r.pid: r.path for r in found.records if r.split == "gallery"}
        assert len(gallery) == sum(r.split == "gallery" for r in found.records) == len(expected)
        assert all(path in expected[pid] for pid, path in gallery.items())
        query = {r.path: r.pid for r in found.records if r.split == "query"}
        assert set(query) | set(gallery.values()) == set().union(*expected.values())
        assert not query.keys() & set(gallery.values())
        cameras = {(r.split, r.camid) for r in found.records if r.split != "train"}
        assert cameras == {("query", 0), ("gallery", 1)}
        assert scan("vehicleid", tmp_path, split_seed=seed).records == found.records
        draws.append(tuple(sorted(gallery.items())))
    assert len(set(draws)) > 5


# PKU-Reid


def pku(root, pids, cameras=(1, 2), orientations=(1, 2)):
    put(root, *(f"{p:03d}_{c:02d}_{o}.png" for p in pids for c in cameras for o in orientations))
    return root


def test_pku_split_is_the_seeded_shuffle_of_the_identities(tmp_path):
    pids = [3, 7, 8, 11, 13, 20, 21]
    root = pku(tmp_path, pids)
    for seed, fraction, n_train in [(0, 0.5, 4), (1, 0.5, 4), (0, 0.3, 2), (0, 0.01, 1), (0, 0.99, 6)]:
        found = scan("pku_reid", root, split_seed=seed, train_fraction=fraction)
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(np.array(pids))
        assert {r.pid for r in found.records if r.split == "train"} == set(shuffled[:n_train].tolist())
        assert {(r.split, r.camid) for r in found.records if r.split != "train"} == {("query", 1), ("gallery", 2)}
        assert {r.pid for r in found.records if r.split == "query"} == set(shuffled[n_train:].tolist())
        assert found.version == f"split_seed={seed} train_fraction={fraction}"


def test_pku_wrong_names_and_cameras(tmp_path):
    pku(tmp_path, [1, 2])
    put(tmp_path, "001_03_1.png", "portrait.png", "1_1.png")
    litter(tmp_path)
    found = scan("pku_reid", tmp_path)
    assert reasons(found) == dict.fromkeys(["001_03_1.png", "portrait.png", "1_1.png"], "bad_name")
    assert len(found.records) == 8


@pytest.mark.parametrize("pids", [[], [4]])
def test_pku_needs_two_people(tmp_path, pids):
    pku(tmp_path, pids)
    with pytest.raises(DataError, match="fewer than two people") as error:
        scan("pku_reid", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_pku_real_photographs():
    root = shared_folder("real", "pku-reid")
    found = scan("pku_reid", root)
    named = {path.name: tuple(map(int, re.findall(r"\d+", path.stem))) for path in root.glob("*.png")}
    assert {r.path: (r.pid, r.camid) for r in found.records} == {name: key[:2] for name, key in named.items()}
    assert len(found.records) == 800
    assert len({r.pid for r in found.records if r.split == "train"}) == 25


# The entry point


def test_load_dataset_returns_sorted_records_and_logs_what_it_drops(tmp_path, caplog):
    market(tmp_path)
    put(tmp_path, "query/holiday.jpg")
    records = load_dataset("market1501", tmp_path)
    assert records == sorted(records, key=lambda r: (r.split, r.path))
    assert len(records) == len(MARKET)
    assert "query/holiday.jpg" in caplog.text
    with pytest.raises(AttributeError):
        records[0].pid = 5


def test_load_dataset_reports_all_problems_of_its_options():
    with pytest.raises(ConfigError, match=r"reader: .*market1501.*\n.*color: no such setting"):
        load_dataset("market1502", Path("x"), color=1)
    with pytest.raises(
        ConfigError,
        match=r"(?s)train_fraction: has no effect.*version: 'v9' is not an edition of msmt17; set version to one of v1",
    ):
        load_dataset("msmt17", Path("x"), train_fraction=0.2, version="v9")


def test_config_identity_leaves_out_where_and_how_fast():
    here, there = (
        DatasetConfig(reader="manifest", root=root, manifest=f"{root}.csv", workers=workers)
        for root, workers in (("/a", 1), ("/b", 7))
    )
    assert here.identity() == there.identity()
    assert here.identity() != DatasetConfig(reader="manifest", root="/a", keep_junk=True).identity()


# Unusual names and links


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not_a_file"),
        (lambda file: file.symlink_to(file), "a loop"),
        (lambda file: file.mkdir(), "not_a_file"),
        (lambda file: socket.socket(socket.AF_UNIX).bind(os.path.relpath(file)), "not_a_file"),
        (lambda file: file.symlink_to("/dev/zero"), "outside_root"),
        (lambda file: file.symlink_to(file.parents[2] / "elsewhere.jpg"), "outside_root"),
        (lambda file: file.symlink_to(file.parents[1] / "query" / "0001_c1s1_001051_00.jpg"), None),
    ],
)
@pytest.mark.parametrize("reader", ["market1501", "manifest"])
def test_entries_that_are_not_files_of_the_dataset_are_rejected(tmp_path, monkeypatch, make, reason, reader):
    """Later stages do not follow links out of the root, so the index must not accept them."""
    root, path = market(tmp_path / "set"), "bounding_box_train/0002_c1s1_000451_99.jpg"
    (tmp_path / "elsewhere.jpg").write_bytes(b"x")
    monkeypatch.chdir(root / "bounding_box_train")
    make(root / path)
    if reader == "manifest":
        (root / "manifest.csv").write_text(f"path,split,pid,camid\n{path},train,2,1\n")
    found = scan(reader, root)
    if reason is None:
        assert path in labels(found)
    elif reason == "a loop":
        assert reasons(found)[path] == ("missing" if reader == "manifest" else "not_a_file")
    else:
        assert reasons(found)[path] == reason


def test_a_folder_that_leads_out_of_the_root_is_refused_at_once(tmp_path):
    root = market(tmp_path / "set")
    (root / "query").rename(tmp_path / "elsewhere")
    (root / "query").symlink_to(tmp_path / "elsewhere")
    found = scan("market1501", root)
    assert {path: reason for path, reason in reasons(found).items() if "query" in path} == {
        path: "outside_root" for path in MARKET if path.startswith("query")
    }
    (root / "query").unlink()
    (root / "query").symlink_to(root / "query")
    with pytest.raises(DataError, match="query cannot be read"):
        scan("market1501", root)


@pytest.mark.parametrize(
    "name", ["0002_c1s1_000451_03.jpg\n", "9" * 30 + "_c1s1_000451_03.jpg", "2_c" + "9" * 30 + "s1_1_1.jpg"]
)
def test_names_that_only_look_right_are_rows(tmp_path, name):
    root = market(tmp_path)
    put(root, f"query/{name}")
    assert reasons(scan("market1501", root)) == {f"query/{name}": "bad_name"}


def test_odd_lines_of_a_list_are_rows(tmp_path):
    root = msmt(tmp_path)
    odd = [b"0000/\xe9_000_02_0303morning_0015_0.jpg 0", b"0000/0000_000_02_0303morning_0015_0.jpg " + b"9" * 5000]
    with (root / "list_query.txt").open("ab") as stream:
        stream.write(b"\n" + b"\n".join(odd) + b"\n")
    found = scan("msmt17", root)
    assert sorted(row.reason for row in found.rejected) == ["bad_path", "bad_row"]
    (root / "list_query.txt").unlink()
    (root / "list_query.txt").mkdir()
    with pytest.raises(DataError, match=r"list_query\.txt cannot be read \(Is a directory\)"):
        scan("msmt17", root)
