"""The artifact store, under damage, kills and company."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from data.artifacts import digests
from data.artifacts import store as artifacts
from data.artifacts.store import SIDECAR, ArtifactRef, ArtifactStore, fingerprint_of
from data.errors import ClipScgiError, DataError
from data.files import read_json
from tests.helpers.fresh_processes import FORK_SERVER, join_all, run_and_kill
from tests.helpers.stages import make_artifact

INGREDIENTS = {"version": 1, "images": "abc"}
FINGERPRINT = fingerprint_of("caption", INGREDIENTS)


def produce(folder):
    (folder / "rows.txt").write_text("hello")
    (folder / "deep").mkdir()
    (folder / "deep" / "more.bin").write_bytes(bytes(1000))


def make(store, action=produce, **options):
    return make_artifact(store, "caption", INGREDIENTS, action, **options)


def nothing_left(store):
    stages = store.root / "stages" / "caption"
    return [path.name for path in stages.iterdir() if path.name.startswith(".")] == []


def test_make_produces_once(store):
    first = make(store)
    assert not first.cached
    assert first.ref.folder == store.root / "stages" / "caption" / FINGERPRINT
    assert (first.ref.folder / "deep" / "more.bin").read_bytes() == bytes(1000)
    second = make(store, lambda folder: pytest.fail("made again"))
    assert second.cached
    assert second.ref == first.ref == store.find("caption", FINGERPRINT)
    assert store.problems("caption", FINGERPRINT) == []
    assert ArtifactRef(**json.loads(json.dumps(first.ref.to_json()))) == first.ref
    assert nothing_left(store)


def test_the_sidecar_lists_ingredients_and_files(store):
    sidecar = read_json(make(store).ref.folder / SIDECAR)
    assert sidecar["ingredients"] == INGREDIENTS
    assert sidecar["files"] == {
        "rows.txt": {"size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()},
        "deep/more.bin": {"size": 1000, "sha256": hashlib.sha256(bytes(1000)).hexdigest()},
    }


def test_content_depends_on_the_files_alone(store):
    one = make(store).ref
    two = make_artifact(store, "caption", {**INGREDIENTS, "version": 2}, produce).ref
    assert one.fingerprint != two.fingerprint
    assert one.content == two.content

    def other(folder):
        produce(folder)
        (folder / "rows.txt").rename(folder / "lines.txt")

    assert make_artifact(store, "caption", {"version": 3}, other).ref.content != one.content
    assert fingerprint_of("audit", INGREDIENTS) != FINGERPRINT


def edit(path):
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def swap_for_folder(path):
    path.unlink()
    path.mkdir()


def rewrite(change):
    def apply(path):
        sidecar = json.loads(path.read_text())
        change(sidecar)
        path.write_text(json.dumps(sidecar))

    return apply


DAMAGES = {
    "file deleted": ("rows.txt", Path.unlink),
    "nested file deleted": ("deep/more.bin", Path.unlink),
    "file truncated": ("deep/more.bin", lambda path: os.truncate(path, 10)),
    "file emptied": ("rows.txt", lambda path: path.write_bytes(b"")),
    "file longer": ("rows.txt", lambda path: path.write_text("hello ")),
    "byte changed": ("rows.txt", edit),
    "file now a folder": ("rows.txt", swap_for_folder),
    "sidecar deleted": (SIDECAR, Path.unlink),
    "sidecar truncated": (SIDECAR, lambda path: os.truncate(path, 100)),
    "sidecar empty": (SIDECAR, lambda path: path.write_bytes(b"")),
    "sidecar a list": (SIDECAR, lambda path: path.write_text("[]")),
    "sidecar null": (SIDECAR, lambda path: path.write_text("null")),
    "sidecar a folder": (SIDECAR, swap_for_folder),
    "sidecar not text": (SIDECAR, lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "files a list": (SIDECAR, rewrite(lambda s: s.update(files=["rows.txt"]))),
    "entries not objects": (SIDECAR, rewrite(lambda s: s.update(files={"rows.txt": "x"}))),
    "size lacking": (SIDECAR, rewrite(lambda s: s["files"]["rows.txt"].pop("size"))),
    "digest edited": (SIDECAR, rewrite(lambda s: s["files"]["rows.txt"].update(sha256="0" * 64))),
    "size edited": (SIDECAR, rewrite(lambda s: s["files"]["rows.txt"].update(size=7))),
    "file unlisted": (SIDECAR, rewrite(lambda s: s["files"].pop("rows.txt"))),
    "content edited": (SIDECAR, rewrite(lambda s: s.update(content="0" * 32))),
    "of another stage": (SIDECAR, rewrite(lambda s: s.update(stage="train"))),
    "of another run": (SIDECAR, rewrite(lambda s: s.update(fingerprint="0" * 32))),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_makes_exactly_this_artifact_again(store, name):
    first = make(store).ref
    other = make_artifact(store, "train", INGREDIENTS, produce).ref
    file, damage = DAMAGES[name]
    damage(first.folder / file)
    assert store.problems("caption", FINGERPRINT)
    assert store.find("caption", FINGERPRINT) is None
    again = make(store)
    assert not again.cached
    assert again.ref == first
    assert make(store).cached
    assert store.find("train", INGREDIENTS and other.fingerprint) == other
    assert nothing_left(store)


def test_an_artifact_replaced_by_a_file_or_gone(store):
    folder = make(store).ref.folder
    for spoil in (lambda: folder.write_text("x"), lambda: None):
        artifacts.shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        spoil()
        assert store.find("caption", FINGERPRINT) is None
        assert not make(store).cached
        assert make(store).cached


def test_files_added_beside_an_artifact_are_no_damage(store):
    folder = make(store).ref.folder
    (folder / ".DS_Store").write_bytes(b"x")
    assert make(store).cached


def test_large_files_are_recalled_and_still_checked(tmp_path, monkeypatch):
    store = ArtifactStore(tmp_path / "store", reread_bytes=100)
    path = make(store).ref.folder / "deep" / "more.bin"
    time.sleep(0.11)
    assert make(store).cached
    real, read = digests.digest_file, []
    monkeypatch.setattr(digests, "digest_file", lambda p: read.append(p.name) or real(p))
    assert make(store).cached
    assert read == []
    times = path.stat()
    path.write_bytes(bytes(999) + b"\1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.problems("caption", FINGERPRINT) == ["deep/more.bin was changed"]
    assert not make(store).cached


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_stage_leaves_nothing(store, error):
    def fail(folder):
        produce(folder)
        raise error

    with pytest.raises(error):
        make(store, fail)
    assert list((store.root / "stages" / "caption").iterdir()) == []
    assert not make(store).cached


def test_a_full_disk_is_named_with_its_remedy(store):
    def fail(folder):
        produce(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ClipScgiError, match=rf"^the disk of {store.root} is full: stage caption could not finish. Free some space"
    ):
        make(store, fail)
    assert list((store.root / "stages" / "caption").iterdir()) == []
    assert not make(store).cached


def test_a_failing_remake_keeps_the_damaged_artifact(store):
    """What a person may still want to rescue is not deleted before there is something better."""
    folder = make(store).ref.folder
    (folder / "rows.txt").unlink()
    with pytest.raises(RuntimeError):
        make(store, lambda _: (_ for _ in ()).throw(RuntimeError))
    assert (folder / "deep" / "more.bin").exists()


def test_a_stage_that_writes_nothing_is_an_error(store):
    with pytest.raises(DataError, match="stage caption did not write any file"):
        make(store, lambda folder: None)
    assert store.find("caption", FINGERPRINT) is None


def test_an_incomplete_artifact_can_be_read_and_is_never_found(store):
    seen = []
    made = make(store, complete=lambda folder: seen.append((folder / "rows.txt").read_text()) or False)
    assert not made.cached
    assert (made.ref.folder / "rows.txt").read_text() == "hello"
    assert store.find("caption", FINGERPRINT) is None
    assert seen == ["hello"]
    again = make(store)
    assert not again.cached
    assert again.ref == made.ref
    assert make(store).cached


def test_ingredients_must_be_plain(store):
    with pytest.raises(TypeError):
        make_artifact(store, "caption", {"path": Path("x")}, produce)
    with pytest.raises(ValueError, match="JSON"):
        make_artifact(store, "caption", {"rate": float("nan")}, produce)


def test_default_store_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "elsewhere"))
    assert ArtifactStore.default().root == tmp_path / "elsewhere"
    monkeypatch.setenv("CLIP_SCGI_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert ArtifactStore.default().root == tmp_path / "artifacts"


# Company: several processes and threads, and kills


def _make_slowly(root, log, barrier):
    def slow(folder):
        produce(folder)
        with log.open("a") as stream:
            stream.write("p")
        time.sleep(0.3)

    barrier.wait()
    made = make_artifact(ArtifactStore(root), "caption", INGREDIENTS, slow)
    with log.open("a") as stream:
        stream.write("c" if made.cached else "m")


def test_of_many_processes_one_makes_and_the_others_wait(store, tmp_path):
    log, barrier = tmp_path / "log", FORK_SERVER.Barrier(5)
    processes = [FORK_SERVER.Process(target=_make_slowly, args=(store.root, log, barrier)) for _ in range(5)]
    for process in processes:
        process.start()
    join_all(processes)
    assert [process.exitcode for process in processes] == [0] * 5
    assert sorted(log.read_text()) == sorted("pmcccc")
    assert store.problems("caption", FINGERPRINT) == []
    assert nothing_left(store)


def test_of_many_threads_one_makes(store):
    made, results = [], []

    def slow(folder):
        produce(folder)
        made.append(1)
        time.sleep(0.1)

    threads = [threading.Thread(target=lambda: results.append(make(store, slow))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), sum(not result.cached for result in results)) == (1, 1)


def test_other_artifacts_do_not_wait(store):
    """The lock is one artifact's: while captioning holds its own, a training can be made."""

    def nested(folder):
        produce(folder)
        assert not make_artifact(store, "train", INGREDIENTS, produce).cached

    assert not make(store, nested).cached


def _make_until_killed(root, ready):
    store = ArtifactStore(root)

    def hang(folder):
        produce(folder)
        scratch = store.scratch("caption", FINGERPRINT)
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "checkpoint").write_text("step 7")
        ready.set()
        time.sleep(60)

    make_artifact(store, "caption", INGREDIENTS, hang)


def test_a_kill_during_produce_loses_nothing_but_time(store):
    for _ in range(2):
        ready = FORK_SERVER.Event()
        process = FORK_SERVER.Process(target=_make_until_killed, args=(store.root, ready))
        process.start()
        assert ready.wait(240)
        assert store.find("caption", FINGERPRINT) is None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    seen = []

    def resume(folder):
        assert list(folder.iterdir()) == []  # never in the ruins of the killed one
        seen.append((store.scratch("caption", FINGERPRINT) / "checkpoint").read_text())
        produce(folder)

    assert not make(store, resume).cached
    assert seen == ["step 7"]
    assert not store.scratch("caption", FINGERPRINT).exists()
    assert nothing_left(store)
    assert make(store).cached


def _make_many(root, start):
    store = ArtifactStore(root)
    for number in range(start, 1000):
        make_artifact(store, "caption", {"number": number}, produce)


def test_kills_at_any_moment_leave_no_half_artifact(store):
    for round_ in range(8):
        run_and_kill(_make_many, store.root, 100 * round_, after=0.03 + 0.02 * round_)
    folders = [path for path in (store.root / "stages" / "caption").iterdir() if not path.name.startswith(".")]
    assert folders
    assert {tuple(store.problems("caption", path.name)) for path in folders} == {()}
    _make_some = [make_artifact(store, "caption", {"number": number}, produce) for number in (0, 100, 200)]
    assert all(store.find("caption", made.ref.fingerprint) == made.ref for made in _make_some)


def test_readers_meet_an_artifact_that_is_being_replaced(store):
    """While one thread damages and remakes it, others see it intact or absent, and never an exception."""
    make(store)
    stop, errors, intact = threading.Event(), [], []

    def look():
        while not stop.is_set():
            try:
                intact.append(store.find("caption", FINGERPRINT) is not None)
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(25):
        (store.folder("caption", FINGERPRINT) / ("rows.txt" if turn % 2 else SIDECAR)).unlink()
        make(store)
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert any(intact)
