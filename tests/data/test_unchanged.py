"""Recognition of an unchanged dataset: what it saves, and every change that it must not overlook."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest

from data.artifacts.store import ArtifactStore
from data.datasets import DatasetConfig
from data.errors import DataError
from data.index import unchanged
from data.index.stage import index
from tests.helpers.data_trees import picture, put, settle

QUERY = "query/0001_c1s1_001051_00.jpg"


@pytest.fixture
def surveys(monkeypatch):
    """Count the surveys."""
    from data.index import stage

    done, real = [], stage.read_dataset
    monkeypatch.setattr(stage, "read_dataset", lambda config, *rest: done.append(config) or real(config, *rest))
    return done


def of(root, **options):
    return DatasetConfig(**{"reader": "market1501", "root": str(root)} | options)


def test_an_unchanged_folder_is_not_listed_into_records(store, root, surveys):
    put(root, "query/holiday.jpg")
    settle()
    first = index(store, config=of(root))
    surveys.clear()
    again = index(store, config=of(root))
    assert (again.made.ref, again.made.cached, again.images.root) == (first.made.ref, True, first.images.root)
    assert first.note == "10 images, 1 rejected, 10 read"
    assert again.note == "10 images, 1 rejected, 0 read"
    assert surveys == []
    assert (again.found.records, again.found.facts) == (first.found.records, first.found.facts)


def _rewrite(root):
    """Write other bytes of the same length, with the same mtime."""
    path = root / QUERY
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-2] + b"xx")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "added": lambda root: put(root, "query/0001_c2s1_000301_99.jpg", first_seed=70),
    "removed": lambda root: (root / QUERY).unlink(),
    "renamed": lambda root: (root / QUERY).rename(root / "query/0001_c1s1_001052_00.jpg"),
    "rewritten": _rewrite,
    "replaced": lambda root: ((root / "new").write_bytes(picture(99)), (root / "new").replace(root / QUERY)),
    "folder moved": lambda root: (root / "query").rename(root / "old"),
    "permissions": lambda root: (root / QUERY).chmod(0o600),
    "link": lambda root: (root / "query/0001_c3s1_001051_00.jpg").symlink_to(root / QUERY),
    "litter": lambda root: (root / "Thumbs.db").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_folder_is_surveyed(store, root, surveys, change):
    index(store, config=of(root))
    surveys.clear()
    CHANGES[change](root)
    made = index(store, config=of(root))
    assert surveys
    fresh = index(ArtifactStore(store.root.with_name("fresh")), config=of(root))
    assert (made.made.ref.fingerprint, made.found.records) == (fresh.made.ref.fingerprint, fresh.found.records)


@pytest.mark.parametrize("options", [{"min_side": 9}, {"name": "Mine"}, {"max_pixels": 100}, {"max_aspect": 1.5}])
def test_another_config_is_surveyed(store, root, surveys, options):
    index(store, config=of(root))
    surveys.clear()
    with suppress(DataError):
        index(store, config=of(root, **options))
    assert surveys


def test_other_code_and_a_damaged_artifact_are_surveyed(store, root, surveys, monkeypatch):
    first = index(store, config=of(root))
    (first.made.ref.folder / "images.parquet").write_bytes(b"damaged")
    surveys.clear()
    assert not index(store, config=of(root)).made.cached
    assert len(surveys) == 1
    assert index(store, config=of(root)).made.cached
    assert len(surveys) == 1
    monkeypatch.setattr(unchanged, "code_digest", lambda: "another version")
    assert index(store, config=of(root)).made.cached
    assert len(surveys) == 2


def test_read_again_reads_and_is_remembered(store, root, surveys):
    index(store, config=of(root))
    assert index(store, config=of(root), reread=True).note == "10 images, 0 rejected, 10 read"
    surveys.clear()
    assert index(store, config=of(root)).note == "10 images, 0 rejected, 0 read"
    assert surveys == []


def test_a_manifest_elsewhere_is_part_of_the_folder(store, root, surveys, tmp_path):
    file = tmp_path / "elsewhere.csv"
    rows = ["path,split,pid,camid", f"{QUERY},query,1,1"]
    file.write_text("\n".join(rows) + "\n")
    settle()
    config = of(root, reader="manifest", manifest=str(file))
    index(store, config=config)
    surveys.clear()
    assert index(store, config=config).note == "1 image, 0 rejected, 0 read"
    assert surveys == []
    file.write_text("\n".join([rows[0], f"{QUERY},query,2,1"]) + "\n")
    assert not index(store, config=config).made.cached
    assert surveys


def test_files_that_changed_just_now_are_surveyed_again(store, root, surveys):
    (root / QUERY).write_bytes(picture(50))
    index(store, config=of(root))
    surveys.clear()
    index(store, config=of(root))
    assert surveys


@pytest.mark.parametrize("inside", ["link", "store"])
def test_what_the_digest_does_not_cover_is_surveyed(root, surveys, inside):
    store = ArtifactStore(root / "store" if inside == "store" else root.with_name("store"))
    if inside == "link":
        shutil.copytree(root / "query", root.with_name("q"))
        (root / "more").symlink_to(root.with_name("q"))
    settle()
    for _ in range(2):
        surveys.clear()
        assert index(store, config=of(root)).note.startswith("10 images")
        assert surveys


def test_a_store_that_cannot_be_written_changes_nothing(store, root, surveys):
    index(store, config=of(root))
    with closing(sqlite3.connect(store.memo.path)) as memo:
        memo.executescript(
            "ALTER TABLE trees RENAME TO kept; CREATE VIEW trees AS SELECT * FROM kept;"
        )  # refuses every row
    put(root, "query/0001_c2s1_000301_99.jpg", first_seed=70)
    settle()
    assert index(store, config=of(root)).note == "11 images, 0 rejected, 1 read"


ADDED = "query/0001_c2s1_000301_99.jpg"
LATE = "query/0001_c2s1_000302_99.jpg"


def test_a_folder_that_does_not_change_while_it_is_read_is_listed_once(store, root, surveys):
    index(store, config=of(root))
    put(root, ADDED, first_seed=70)
    surveys.clear()
    assert index(store, config=of(root)).note == "11 images, 0 rejected, 1 read"
    assert len(surveys) == 1


def test_a_file_that_is_added_while_others_are_read_is_found(store, root, surveys):
    index(store, config=of(root))
    put(root, ADDED, first_seed=70)
    surveys.clear()

    def add(done, total, note):
        if not (root / LATE).exists():
            put(root, LATE, first_seed=71)

    assert index(store, config=of(root), progress=add).note == "12 images, 0 rejected, 2 read"
    assert len(surveys) > 2


def test_a_change_while_the_artifact_is_written_is_not_remembered_as_indexed(store, root, surveys, monkeypatch):
    from data.index.stage import IndexStage

    real = IndexStage.produce
    monkeypatch.setattr(
        IndexStage, "produce", lambda *args: (put(root, ADDED, first_seed=70), settle(), real(*args))[-1]
    )
    assert index(store, config=of(root)).note == "10 images, 0 rejected, 10 read"
    assert index(store, config=of(root)).note == "11 images, 0 rejected, 1 read"
