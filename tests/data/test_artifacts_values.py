"""What the artifact store writes, value by value, and every problem that it names."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from data.artifacts import store as artifacts
from data.artifacts.digests import DigestMemo
from data.artifacts.store import LABELS, SIDECAR, ArtifactStore, Sidecar, fingerprint_of, read_uses
from data.errors import DataError
from data.files import read_json
from tests.helpers.stages import make_artifact

INGREDIENTS = {"version": 1, "images": "abc"}
# The format of fingerprints: if it changes, every artifact that exists is made again.
FINGERPRINT = "fd8bff3ff1897e721464fbc949924ecd"
CONTENT = "53e402df27fd7f7b04599008c2b12f3e"
CONTENT_WITH_PARTS = "f601ca0b4f05b794c43a7919ffb6870c"
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
TEN_ZEROS = "01d448afd928065458cf670b60f5a594d735af0172c8d67f22a81680132681ca"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("data.files.os.fsync", lambda handle: None)


def produce(folder):
    (folder / "rows.txt").write_text("hello")
    (folder / "deep").mkdir()
    (folder / "deep" / "more.bin").write_bytes(bytes(10))


def make(store, action=produce, stage="caption", ingredients=INGREDIENTS, **options):
    return make_artifact(store, stage, ingredients, action, **options)


def edit(store, **changes):
    """Change fields of the sidecar; None removes one."""
    path = store.folder("caption", FINGERPRINT) / SIDECAR
    sidecar = read_json(path) | changes
    path.write_text(json.dumps({name: value for name, value in sidecar.items() if value is not None}))


def test_fingerprints_and_contents_are_pinned(store):
    assert fingerprint_of("caption", INGREDIENTS) == FINGERPRINT
    made = make(store)
    assert (made.ref.content, made.cached) == (CONTENT, False)
    assert make(store).cached is True
    ref = make(store, stage="audit", contents=lambda folder: {"texts": (folder / "rows.txt").read_text()}).ref
    assert ref.content == CONTENT_WITH_PARTS


def test_the_sidecar_of_a_plain_artifact(store):
    ref = make(store).ref
    before = datetime.now(UTC)
    sidecar = read_json(ref.folder / SIDECAR)
    created = datetime.fromisoformat(sidecar.pop("created"))
    assert created.tzinfo == UTC
    assert created.microsecond == 0
    assert abs(created - before) < timedelta(hours=1)
    assert sidecar == {
        "stage": "caption",
        "fingerprint": FINGERPRINT,
        "ingredients": INGREDIENTS,
        "content": CONTENT,
        "files": {
            "deep/more.bin": {"size": 10, "sha256": TEN_ZEROS},
            "rows.txt": {"size": 5, "sha256": HELLO},
        },
    }
    assert list(sidecar["files"]) == ["deep/more.bin", "rows.txt"]
    assert ref.folder.stat().st_mode & 0o777 == 0o755
    assert ref.digests_of("rows.txt") == {"rows.txt": HELLO}
    assert ref.contents() == {}


def test_digests_of_parts_are_kept_and_guarded(store):
    ref = make(store, contents=lambda folder: {"texts": "t1", "labels": "l1"}).ref
    assert read_json(ref.folder / SIDECAR)["contents"] == {"texts": "t1", "labels": "l1"}
    assert ref.contents() == {"texts": "t1", "labels": "l1"}
    assert store.find("caption", FINGERPRINT) == ref
    edit(store, contents={"texts": "t2", "labels": "l1"})
    assert store.problems("caption", FINGERPRINT) == ["artifact.json was changed"]
    edit(store, contents=None)
    assert store.problems("caption", FINGERPRINT) == ["artifact.json was changed"]


def test_each_problem_is_named(store):
    def problems():
        return store.problems("caption", FINGERPRINT)

    assert problems() == ["absent"]
    folder = make(store).ref.folder
    assert problems() == []
    (folder / "rows.txt").write_text("hallo")
    assert problems() == ["rows.txt was changed"]
    (folder / "rows.txt").write_text("hello!!")
    (folder / "deep" / "more.bin").unlink()
    assert problems() == ["deep/more.bin is missing", "rows.txt has 7 bytes instead of 5"]
    edit(store, fingerprint="0" * 32)
    assert problems() == ["artifact.json belongs to another artifact"]
    edit(store, fingerprint=FINGERPRINT, stage="train")
    assert problems() == ["artifact.json belongs to another artifact"]
    (folder / SIDECAR).write_text("{}")
    assert problems() == ["artifact.json is damaged"]
    assert store._inspect("caption", FINGERPRINT)[0] == store._inspect("audit", FINGERPRINT)[0] == ""


def test_a_file_that_cannot_be_read_is_named_with_the_reason(store, monkeypatch):
    make(store)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(artifacts, "digest_file", refuse)
    assert store.problems("caption", FINGERPRINT) == [
        "deep/more.bin cannot be read (Permission denied)",
        "rows.txt cannot be read (Permission denied)",
    ]


@pytest.mark.parametrize(("limit", "recalled"), [(9, ["more.bin"]), (10, [])])
def test_only_files_above_the_limit_are_recalled(store, monkeypatch, limit, recalled):
    make(store)
    store = ArtifactStore(store.root, reread_bytes=limit)
    asked, real = [], DigestMemo.digest_folder
    monkeypatch.setattr(
        DigestMemo, "digest_folder", lambda self, folder, names: asked.extend(names) or real(self, folder, names)
    )
    assert store.problems("caption", FINGERPRINT) == []
    assert asked == recalled
    assert store.memo.path == store.root / "digests.sqlite"


def test_files_up_to_64_mib_are_read_again():
    assert artifacts.REREAD_BYTES == 64 * 1024 * 1024


def test_where_things_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    store = ArtifactStore(Path("~/a/../b"))
    assert store.root == tmp_path / "b"
    assert store.folder("train", "f") == tmp_path / "b" / "stages" / "train" / "f"
    assert store.scratch("train", "f") == tmp_path / "b" / "work" / "train" / "f"
    with store.lock("train", "f"):
        assert [path.name for path in (tmp_path / "b" / "locks").iterdir()] == ["train-f"]
    with store.lock("train", "f"):  # once more, where the folder exists
        pass


def test_scratch_is_kept_while_a_stage_fails_and_removed_when_it_has_finished(store):
    scratch = store.scratch("caption", FINGERPRINT)
    scratch.mkdir(parents=True)
    (scratch / "checkpoint").write_text("x")

    def fail(folder):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(store, fail)
    assert (scratch / "checkpoint").exists()
    make(store)
    assert not scratch.exists()


def test_leftovers_of_a_killed_process_are_removed_before_and_others_are_left(store):
    stage = store.root / "stages" / "caption"
    stale, other = stage / f".{FINGERPRINT}.abc", stage / ".other.abc"
    for folder in (stale, other):
        (folder / "deep").mkdir(parents=True)
    seen = []
    make(store, lambda folder: seen.append(stale.exists()) or produce(folder))
    assert seen == [False]
    assert other.exists()
    assert sorted(path.name for path in stage.iterdir()) == sorted([".other.abc", FINGERPRINT])


def test_the_folder_to_produce_in_lies_beside_the_final_one_and_is_not_counted(store):
    seen = []
    make(store, lambda folder: seen.append(folder) or produce(folder))
    assert seen[0].parent == store.root / "stages" / "caption"
    assert seen[0].name.startswith(f".{FINGERPRINT}.")
    assert [sidecar.folder.name for sidecar in store.sidecars("caption")] == [FINGERPRINT]


def test_a_find_changes_nothing_and_a_use_is_marked_unless_nothing_may_be_written(store, monkeypatch):
    ref = make(store).ref
    os.utime(ref.folder, (1, 1))
    assert store.find("caption", FINGERPRINT) == ref
    assert ref.folder.stat().st_mtime == 1
    assert make(store).cached
    assert ref.folder.stat().st_mtime > 1
    os.utime(ref.folder, (1, 1))
    store.record_use(ref, dataset="people", recipe="demo")
    assert ref.folder.stat().st_mtime > 1

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(artifacts.os, "utime", read_only)
    assert make(store).ref == ref


def test_an_artifact_made_meanwhile_is_found_behind_the_lock(store, monkeypatch):
    """Absent at the first look; another process has made it by the time the lock is free."""
    ref, real, looks = make(store).ref, ArtifactStore.find, []

    def find(self, *key):
        looks.append(key)
        return None if len(looks) == 1 else real(self, *key)

    monkeypatch.setattr(ArtifactStore, "find", find)
    made = make(store, lambda folder: pytest.fail("made again"))
    assert (made.ref, made.cached) == (ref, True)
    assert looks == [("caption", FINGERPRINT)] * 2


def test_a_stage_that_writes_nothing_names_itself_and_the_folder(store):
    with pytest.raises(
        DataError, match=rf"^stage caption did not write any file into {store.root}/stages/caption/\.\S+$"
    ):
        make(store, lambda folder: (folder / "empty").mkdir())


def test_sidecars_of_a_stage(store):
    assert store.sidecars("caption") == []
    whole = make(store, contents=lambda _: {"texts": "t"}).ref
    partial = make(store, ingredients={"version": 2}, complete=lambda _: False).ref
    damaged = make(store, ingredients={"version": 3}).ref
    (damaged.folder / SIDECAR).write_text("{}")
    (store.root / "stages" / "caption" / "a file").write_text("x")
    (store.root / "stages" / "caption" / ".hidden").mkdir()
    os.utime(whole.folder, (77, 88))
    store.record_use(whole, dataset="people", recipe="demo")
    files = {"deep/more.bin": TEN_ZEROS, "rows.txt": HELLO}
    found = {sidecar.folder: sidecar for sidecar in store.sidecars("caption")}
    assert list(found) == sorted([whole.folder, partial.folder])
    assert found[whole.folder] == Sidecar(
        folder=whole.folder,
        fingerprint=FINGERPRINT,
        ingredients=INGREDIENTS,
        files=files,
        contents={"texts": "t"},
        uses=[{"dataset": "people", "recipe": "demo"}],
        used=whole.folder.stat().st_mtime,
    )
    assert found[partial.folder].fingerprint is None
    assert found[partial.folder].contents == {}
    assert found[partial.folder].uses == []


def test_known_are_those_begun_here_of_one_stage(store):
    assert store.known("caption") == set()
    ref = make(store).ref
    make(store, stage="audit", ingredients={"version": 9})
    with pytest.raises(ZeroDivisionError):
        make(store, lambda _: 1 // 0, ingredients={"version": 2})
    artifacts.shutil.rmtree(ref.folder)
    assert store.known("caption") == {FINGERPRINT, fingerprint_of("caption", {"version": 2})}


def test_uses_are_kept_in_order_once_each(store):
    ref = make(store).ref
    assert read_uses(ref.folder) == []
    label = ref.folder / LABELS
    for recipe, expected in (("a", "a"), ("b", "ab"), ("a", "ba"), ("c", "bac")):
        store.record_use(ref, dataset="people", recipe=recipe)
        assert read_uses(ref.folder) == [{"dataset": "people", "recipe": letter} for letter in expected]
        os.utime(label, (5, 5))
        store.record_use(ref, dataset="people", recipe=recipe)  # nothing new, nothing written
        assert label.stat().st_mtime == 5
    assert store.find("caption", FINGERPRINT) == ref
    for damage in ("[1]", "7", "{", '[{"dataset": "x"}]'):
        label.write_text(damage)
        assert read_uses(ref.folder) == []


def test_a_use_that_cannot_be_written_is_no_error(store, monkeypatch):
    ref = make(store).ref

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(artifacts, "write_json", read_only)
    store.record_use(ref, dataset="people", recipe="demo")
    assert read_uses(ref.folder) == []
