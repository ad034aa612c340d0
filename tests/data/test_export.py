"""A manifest that is written from any reader gives the same images when it is read back."""

from __future__ import annotations

from functools import partial

import pyarrow.parquet as pq
import pytest

from data.artifacts.store import ArtifactStore
from data.columns.records import ImageRecord
from data.datasets import DatasetConfig
from data.index.export import SUFFIXES, formulas, write_manifest
from data.index.stage import index, usable_images
from flows.cli.app import main
from tests.helpers.data_trees import TEXT_SEARCH, market, put, text_search


def msmt17(root):
    name = "{}/{}_000_{:02d}_0303morning_0000_0.jpg".format
    lists = {"train": [(0, 1)], "val": [(1, 2)], "query": [(0, 1)], "gallery": [(0, 3), (1, 4)]}
    for part, rows in lists.items():
        where, lines = "mask_train_v2" if part in ("train", "val") else "mask_test_v2", []
        for pid, camera in rows:
            path = name(f"{pid:04d}", f"{pid:04d}", camera)
            put(root / where, path, first_seed=hash((where, path)) % 10_000)
            lines.append(f"{path} {pid}")
        (root / f"list_{part}.txt").write_text("\n".join(lines) + "\n")


def vehicleid(root):
    put(root / "image", *(f"{number:07d}.jpg" for number in range(8)))
    (root / "train_test_split").mkdir()
    (root / "train_test_split" / "train_list.txt").write_text("0000000 5\n0000001 5\n")
    (root / "train_test_split" / "test_list_800.txt").write_text(
        "".join(f"{n:07d} {6 + n // 4}\n" for n in range(2, 8))
    )


def images(root):
    put(root, "one.jpg", "deep/er/two.png", "-three.jpg", 'say "x", y.jpg', " blank .jpg")
    (root / "broken.jpg").write_bytes(b"no image")


def folders(root):
    names = ["Chloé", "NA", "0012", "=1+1", "None", " Bo ", "a,b", 'c"d', "line\nbreak", "ret\rurn"]
    put(root, *(f"{name}/{number}_cam{1 + number % 2}.jpg" for name in names for number in range(3)))
    (root / "Chloé" / "broken_cam1.jpg").write_bytes(b"no image")


TREES = {
    "market1501": (market, {}),
    "market1501 with junk": (market, {"keep_junk": True}),
    "pku_reid": (
        lambda root: put(root, *(f"{p:03d}_0{c}_{o}.png" for p in (3, 7) for c in (1, 2) for o in (1, 2))),
        {},
    ),
    "cuhk03_np": (
        lambda root: put(
            root / "labeled",
            "bounding_box_train/0001_c1_1.png",
            "query/0002_c1_1.png",
            "bounding_box_test/0002_c2_1.png",
        ),
        {},
    ),
    "dukemtmc_reid": (
        lambda root: put(
            root,
            "bounding_box_train/0001_c1_f0000001.jpg",
            "query/0002_c1_f0000002.jpg",
            "bounding_box_test/0002_c2_f0000003.jpg",
        ),
        {},
    ),
    "veri776": (
        lambda root: put(
            root,
            "image_train/0001_c001_00016450_0.jpg",
            "image_query/0002_c002_00030600_0.jpg",
            "image_test/0002_c003_00085280_0.jpg",
        ),
        {},
    ),
    "msmt17": (msmt17, {}),
    "vehicleid": (vehicleid, {}),
    **{reader: (partial(text_search, reader=reader), {}) for reader in TEXT_SEARCH},
    "images": (images, {}),
    "folders": (folders, {}),
    "folders with cameras": (folders, {"camera_pattern": r"cam(\d+)"}),
    "folders by another seed": (folders, {"split_seed": 3, "train_fraction": 0.7}),
}


def table_of(store, config):
    return pq.read_table(index(store, config=config).made.ref.folder / "images.parquet")


def sentences_of(store, config):
    table = index(store, config=config).images.sentences()
    return None if table is None else table.to_pylist()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", TREES)
def test_each_reader_reads_back_as_the_same_images(name, suffix, tmp_path):
    make, options = TREES[name]
    root, store = tmp_path / "set", ArtifactStore(tmp_path / "home")
    root.mkdir()
    make(root)
    config = DatasetConfig(reader=name.split()[0], root=str(root), allow_identical=True, **options)
    scan = usable_images(store, config=config)
    assert scan.records
    file = tmp_path / f"people{suffix}"
    write_manifest(file, scan.records, overwrite=False)
    back = DatasetConfig(
        reader="manifest",
        root=str(scan.root),
        manifest=str(file),
        allow_identical=True,
        keep_junk=config.keep_junk,
    )
    assert table_of(store, back).equals(table_of(store, config))
    assert sentences_of(store, back) == sentences_of(store, config)


def test_labels_that_contradict_each_other_can_be_written_to_mend_them(tmp_path):
    put(tmp_path / "set", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "set" / "manifest.csv").write_text("path,split,pid\na.jpg,train,1\nb.jpg,query,1\nc.jpg,gallery,1\n")
    config = DatasetConfig(reader="manifest", root=str(tmp_path / "set"))
    assert len(usable_images(ArtifactStore(tmp_path / "home"), config=config).records) == 3


def test_values_that_spreadsheets_run_are_counted():
    made = [
        ImageRecord(path=path, split="train", pid=1, camid=1, label=label)
        for path, label in [
            ("a.jpg", "=1+1"),
            ("-b.jpg", "al"),
            ("c.jpg", "al"),
            ("d.jpg", "@x"),
            ("e.jpg", "+1"),
            ("f.jpg", "a=b"),
        ]
    ]
    assert formulas(made) == 4


def test_the_command_writes_once_and_says_how_to_read_it_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, home = tmp_path / "people", str(tmp_path / "home")
    put(root, *(f"{name}/cam{n}.jpg" for name in ("Al", "=Bo") for n in (1, 2)))
    command = ["manifest", str(root), "--home", home, "--set", "data.camera_pattern=cam(\\d)"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert f"use       clip-scgi check manifest --set data.root={root} --set data.reader=manifest" in told.out
    assert "data.manifest" not in told.out
    assert "2 paths or labels with =, +, - or @ at the beginning" in " ".join(told.err.split())
    written = (root / "manifest.csv").read_text()
    assert written.startswith("path,split,pid,camid,label")
    assert main(command) == 1
    assert "exists already: give another --output, or add --overwrite" in " ".join(capsys.readouterr().err.split())
    assert (root / "manifest.csv").read_text() == written
    assert main([*command, "--overwrite"]) == 0
    assert main([*command, "--output", "list.tsv"]) == 0
    assert f"--set data.manifest={tmp_path / 'list.tsv'}" in capsys.readouterr().out
    for wrong, message in (
        (["--output", "list.xlsx"], "the name must end in .csv or .tsv or .parquet"),
        (["--set", "data.camera_patern=x"], "did you mean data.camera_pattern"),
        (["--reader", "foldrs"], "data.reader"),
    ):
        assert main([*command, *wrong]) == 1
        assert message in " ".join(capsys.readouterr().err.split())


def test_images_without_identities_are_checked_up_to_their_captions(tmp_path, capsys):
    put(tmp_path, "a.jpg")
    assert main(["manifest", str(tmp_path), "--reader", "images", "--home", str(tmp_path / "home")]) == 0
    assert "clip-scgi check manifest --until caption --set data.root=" in capsys.readouterr().out


def test_a_folder_without_images_for_the_reader_is_not_an_empty_manifest(tmp_path, capsys):
    (tmp_path / "train-000000.tar").write_bytes(b"")
    assert main(["manifest", str(tmp_path), "--home", str(tmp_path / "home")]) == 1
    assert "set data.reader=webdataset" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "manifest.csv").exists()


def test_junk_needs_its_setting_to_be_read_back(tmp_path, capsys):
    market(tmp_path / "set")
    command = ["manifest", str(tmp_path / "set"), "--reader", "market1501", "--home", str(tmp_path / "home")]
    assert main([*command, "--set", "data.keep_junk=true"]) == 0
    assert "--set data.keep_junk=true" in capsys.readouterr().out


def test_a_manifest_without_splits_is_split_by_rule(tmp_path):
    put(tmp_path, *(f"{name}{n}.jpg" for name in "abcd" for n in range(3)))
    text = "path,label\n" + "".join(f"{name}{n}.jpg,{name}\n" for name in "abcd" for n in range(3))
    (tmp_path / "manifest.csv").write_text(text)
    store, root = ArtifactStore(tmp_path / "home"), str(tmp_path)
    table = table_of(store, DatasetConfig(reader="manifest", root=root, split="by_identity"))
    assert sorted(set(table["split"].to_pylist())) == ["gallery", "query", "train"]
    assert sorted(set(table["label"].to_pylist())) == ["a", "b", "c", "d"]
