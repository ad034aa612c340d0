"""Fingerprints, digests, atomic files, configs and the artefact store, under damage, kills and company."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from data import artifacts, digests
from data.artifacts import SIDECAR, ArtifactRef, ArtifactStore, fingerprint_of
from data.config import RUNTIME, Config, RuntimeInt, build_config
from data.digests import DigestMemo, Stamp, path_range
from data.errors import ClipScgiError, ConfigError, DataError, RejectedRow, RetryableError, raise_problems
from data.files import atomic_path, inside, read_json, write_json, write_table, write_text
from data.fingerprint import canonical_json, digest, digest_file

# Not forked from this process: tests before these may have filled it with threads and servers.
FORK_SERVER = multiprocessing.get_context("forkserver")


def join_all(processes):
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "a process hangs"


def _set_and_run(running, target, *args):
    running.set()
    target(*args)


def run_and_kill(target, *args, after):
    """Run `target` in a process and kill it `after` seconds into its work."""
    running = FORK_SERVER.Event()
    process = FORK_SERVER.Process(target=_set_and_run, args=(running, target, *args))
    process.start()
    assert running.wait(60)
    time.sleep(after)
    process.kill()
    process.join()


# Canonical JSON and digests

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda children: st.lists(children) | st.dictionaries(st.text(st.characters(codec="utf-8")), children),
    max_leaves=12,
)


def same(a, b):
    """Equal in type too: 1, 1.0 and True are three values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_canonical_json_loses_nothing(value):
    assert same(json.loads(canonical_json(value)), value)


@settings(max_examples=60, deadline=None)
@given(PLAIN, PLAIN)
def test_canonical_json_is_equal_only_for_equal_values(a, b):
    assert (canonical_json(a) == canonical_json(b)) == same(a, b)
    assert (digest(a) == digest(b)) == same(a, b)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), PLAIN))
def test_canonical_json_knows_no_order_of_keys(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_digest_worked_by_hand():
    text = '{"a":[1,2.5,null,true],"é":{"":"\\"\\n"}}'
    assert canonical_json({"é": {"": '"\n'}, "a": (1, 2.5, None, True)}) == text
    assert digest({"é": {"": '"\n'}, "a": [1, 2.5, None, True]}) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("value", [Path("x"), b"x", {1, 2}, object(), {1: "x"}, {None: 1}, [{"a": {True: 1}}], 1 + 2j])
def test_canonical_json_refuses_what_is_no_json(value):
    with pytest.raises(TypeError):
        canonical_json({"value": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")], "\ud800"])
def test_digest_refuses_what_has_no_text(value):
    with pytest.raises(ValueError, match=r"JSON|surrogate"):
        digest(value)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_digest_file_is_sha256(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# The memory of digests


def settled(path, content):
    path.write_bytes(content)
    time.sleep(0.11)
    return path


def test_memo_reads_a_file_once(tmp_path, monkeypatch):
    memo = DigestMemo(tmp_path / "memo.sqlite")
    settled(tmp_path / "a", b"aaa")
    expected = {"a": hashlib.sha256(b"aaa").hexdigest()}
    assert memo.digest_folder(tmp_path, ["a"]) == expected
    monkeypatch.setattr(digests, "digest_file", lambda path: pytest.fail(f"{path} was read again"))
    assert memo.digest_folder(tmp_path, ["a"]) == expected


def test_memo_sees_a_change_that_hides_its_time(tmp_path):
    memo, path = DigestMemo(tmp_path / "memo.sqlite"), settled(tmp_path / "a", b"aaa")
    memo.digest_folder(tmp_path, ["a"])
    times = path.stat()
    path.write_bytes(b"bbb")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert memo.digest_folder(tmp_path, ["a"]) == {"a": hashlib.sha256(b"bbb").hexdigest()}


def test_memo_sees_a_file_replaced_by_an_older_one(tmp_path):
    memo, path = DigestMemo(tmp_path / "memo.sqlite"), settled(tmp_path / "new", b"bbb")
    other = settled(tmp_path / "a", b"aaa")
    os.utime(path, ns=(other.stat().st_atime_ns, other.stat().st_mtime_ns))
    memo.digest_folder(tmp_path, ["a"])
    path.replace(other)
    assert memo.digest_folder(tmp_path, ["a"]) == {"a": hashlib.sha256(b"bbb").hexdigest()}


@pytest.mark.parametrize(
    ("ctime_ns", "read_ns", "expected"),
    [
        (1_000_000_001, 1_050_000_000, False),  # 50 ms later: within a tick
        (1_000_000_001, 1_200_000_000, True),
        (1_000_000_000, 1_200_000_000, False),  # whole seconds: the tick may be a second or two
        (1_000_000_000, 3_100_000_000, True),
        (9_000_000_001, 1_000_000_000, False),  # the clock was set back
    ],
)
def test_when_a_stamp_is_settled(ctime_ns, read_ns, expected):
    assert Stamp(3, 5, ctime_ns).settled(read_ns) is expected
    assert Stamp(3, 2 * read_ns, ctime_ns).settled(read_ns) is expected  # an mtime in the future is no reason


def test_memo_does_not_keep_what_may_still_change(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_TICK_NS", 10**13)
    memo = DigestMemo(tmp_path / "memo.sqlite")
    settled(tmp_path / "a", b"aaa")
    memo.digest_folder(tmp_path, ["a"])
    assert memo.recall(tmp_path) == {}


def test_memo_recalls_one_folder_and_not_its_namesakes(tmp_path):
    memo, stamp = DigestMemo(tmp_path / "memo.sqlite"), Stamp(1, 2, 3)
    paths = [
        "/x/a/1",
        "/x/a/b/2",
        "/x/ab/3",
        "/x/a.jpg",
        "/x/a",
        "/x/a0",
        "/x/A/1",
        os.fsdecode(b"/x/a/\xe9"),
        "/x/a/é",
    ]
    memo.remember({path: (stamp, f"{number:064d}") for number, path in enumerate(paths)})
    for root in (Path("/x/a"), Path("/x"), Path("/")):
        low, high = path_range(root)
        expected = {path for path in paths if Path(path).is_relative_to(root) and Path(path) != root}
        assert set(memo.recall(root)) == expected
        assert {path for path in paths if low <= os.fsencode(path) < high} == expected


@pytest.mark.parametrize("content", [b"", b"no database" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_memo_that_is_damaged_is_begun_anew(tmp_path, content):
    memo = DigestMemo(tmp_path / "memo.sqlite")
    memo.path.write_bytes(content)
    assert memo.recall(Path("/x")) == {}
    memo.remember({"/x/a": (Stamp(1, 2, 3), "a" * 64)})
    assert memo.recall(Path("/x")) == {"/x/a": (Stamp(1, 2, 3), "a" * 64)}


def test_memo_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "memo.sqlite").mkdir()
    with pytest.raises(RetryableError, match=r"memo\.sqlite.*cannot be used.*writable"):
        DigestMemo(tmp_path / "memo.sqlite").recall(Path("/x"))


def _remember_some(path, number):
    memo = DigestMemo(path)
    for turn in range(10):
        memo.remember({f"/x/{number}-{turn}": (Stamp(number, turn, 0), "a" * 64)})
        memo.recall(Path("/x"))


def test_memo_of_many_processes(tmp_path):
    path = tmp_path / "memo.sqlite"
    processes = [FORK_SERVER.Process(target=_remember_some, args=(path, number)) for number in range(6)]
    for process in processes:
        process.start()
    join_all(processes)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(DigestMemo(path).recall(Path("/x"))) == 60


# Atomic files


def test_atomic_path_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "file"
    write_text(path, "old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def _write_for_ever(path):
    for number in range(10**6):
        write_json(path, {"number": number, "filler": ["x"] * 2000})


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"number": -1, "filler": []})
    for delay in (0.02, 0.05, 0.11):
        run_and_kill(_write_for_ever, path, after=delay)
        assert read_json(path).keys() == {"number", "filler"}


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"a": float("nan")})
    assert read_json(tmp_path / "file") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1} x'])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=r"file is not valid JSON.*delete it"):
        read_json(tmp_path / "file")


def test_tables_have_exactly_their_schema_and_the_same_bytes(tmp_path):
    schema = pa.schema([("a", pa.string()), ("b", pa.int64())], metadata={b"version": b"1"})
    texts, numbers = [f"x{n % 7}" for n in range(5000)], list(range(5000))
    whole = pa.table({"a": texts, "b": numbers})
    sources = {
        "whole": whole,
        "pieces": pa.concat_tables([whole.slice(0, 10), whole.slice(10, 3000), whole.slice(3010)]),
        "pandas": pa.Table.from_pandas(pd.DataFrame({"b": numbers, "z": texts, "a": texts})),
        "narrow": pa.table({"b": pa.array(numbers, pa.int32()), "a": pa.array(texts).dictionary_encode()}),
    }
    for name, table in sources.items():
        write_table(tmp_path / name, table, schema)
        assert pq.read_schema(tmp_path / name).equals(schema, check_metadata=True)
    assert len({(tmp_path / name).read_bytes() for name in sources}) == 1
    with pytest.raises(KeyError):
        write_table(tmp_path / "lacking", whole.select(["a"]), schema)
    assert not (tmp_path / "lacking").exists()


def test_inside_a_root(tmp_path):
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    for name, target in {"out": tmp_path, "in": root / "folder", "sibling": tmp_path / "root2", "loop": "loop"}.items():
        (root / name).symlink_to(target)
    for good in ("a.jpg", "folder/a.jpg", "./a.jpg", "in/a.jpg", "..a/b", "absent/x"):
        assert inside(root, good) == root / good
    for bad in ("../a", "/etc/passwd", "folder/../../a", "out/a", "sibling/a", "a\\b", "a\0b", "folder/.."):
        with pytest.raises(RejectedRow) as error:
            inside(root, bad)
        assert error.value.reason == "outside_root"
    for circle in ("loop", "loop/a"):
        with pytest.raises(RejectedRow) as error:
            inside(root, circle)
        assert error.value.reason == "missing"


def test_problems_are_told_together():
    raise_problems("x", [])
    with pytest.raises(ConfigError, match=r"^x: one$"):
        raise_problems("x", ["one"])
    with pytest.raises(DataError, match=r"^x: 2 problems\n  - one\n  - two$"):
        raise_problems("x", iter(["one", "two"]), DataError)
    assert issubclass(DataError, ClipScgiError)


# Configs


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(Config):
    """A part."""

    size: int = Field(default=3, ge=1)
    """How big."""
    workers: RuntimeInt = 2
    """How many."""


class Outer(Config):
    """A whole."""

    name: str
    """Its name."""
    inner: Inner = Inner()
    """One part."""
    parts: tuple[Inner, ...] = ()
    """More parts."""
    by_name: dict[str, Inner] = Field(default_factory=dict)
    """And more."""
    colours: frozenset[Colour] = frozenset()
    """Colours."""
    rate: float = 1.0
    """A number."""
    threads: RuntimeInt | None = None
    """How many, perhaps."""
    log: Annotated[Path | None, RUNTIME] = None
    """Where to write."""


def test_identity_holds_what_can_change_a_result_and_nothing_else():
    one = Outer(name="x", inner=Inner(size=4, workers=1), parts=(Inner(workers=1),), by_name={"a": Inner(workers=1)})
    two = Outer(
        name="x",
        inner=Inner(size=4, workers=9),
        parts=(Inner(workers=9),),
        by_name={"a": Inner(workers=9)},
        threads=5,
        log=Path("/var"),
    )
    expected = {
        "name": "x",
        "inner": {"size": 4},
        "parts": [{"size": 3}],
        "by_name": {"a": {"size": 3}},
        "colours": [],
        "rate": 1.0,
    }
    assert one.identity() == two.identity() == expected
    assert canonical_json(one.identity())
    changed = {"name": "y"}, {"inner": Inner(size=5)}, {"parts": ()}, {"rate": 2}, {"colours": frozenset(Colour)}
    for change in changed:
        assert one.model_copy(update=change).identity() != expected


def test_identity_is_the_same_in_every_process():
    code = (
        "from data.config import Config\n"
        "class C(Config):\n"
        "    colours: frozenset[str]\n"
        "print(C(colours=['red', 'blue', 'green', 'pink']).identity())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")
    ]
    assert {process.communicate()[0] for process in processes} == {"{'colours': ['blue', 'green', 'pink', 'red']}\n"}


def test_build_config_tells_every_problem_with_its_key():
    values = {"inner": {"size": 0, "sise": 1}, "rate": float("nan"), "threads": "many"}
    with pytest.raises(ConfigError) as error:
        build_config(Outer, values, "recipe demo")
    text = str(error.value)
    assert text.startswith("recipe demo: 5 problems\n")
    for part in (
        "name: Field required",
        "inner.size: Input should be greater than or equal to 1 (given: 0)",
        "inner.sise: no such setting; known here: size, workers",
        "rate: ",
        "threads: ",
    ):
        assert part in text
    assert build_config(Outer, {"name": "x", "inner": {"size": 7}}, "x").inner.size == 7


def test_configs_are_frozen_and_keyword_only():
    config = Outer(name="x")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"
    with pytest.raises(TypeError):
        Outer("x")
    assert Outer.model_fields["rate"].description == "A number."


# The artefact store


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


INGREDIENTS = {"version": 1, "images": "abc"}
FINGERPRINT = fingerprint_of("caption", INGREDIENTS)


def produce(folder):
    (folder / "rows.txt").write_text("hello")
    (folder / "deep").mkdir()
    (folder / "deep" / "more.bin").write_bytes(bytes(1000))


def make(store, action=produce, **options):
    return store.make("caption", INGREDIENTS, action, **options)


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
    two = store.make("caption", {**INGREDIENTS, "version": 2}, produce).ref
    assert one.fingerprint != two.fingerprint
    assert one.content == two.content

    def other(folder):
        produce(folder)
        (folder / "rows.txt").rename(folder / "lines.txt")

    assert store.make("caption", {"version": 3}, other).ref.content != one.content
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
def test_damage_makes_exactly_this_artefact_again(store, name):
    first = make(store).ref
    other = store.make("train", INGREDIENTS, produce).ref
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


def test_an_artefact_replaced_by_a_file_or_gone(store):
    folder = make(store).ref.folder
    for spoil in (lambda: folder.write_text("x"), lambda: None):
        artifacts.shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        spoil()
        assert store.find("caption", FINGERPRINT) is None
        assert not make(store).cached
        assert make(store).cached


def test_files_added_beside_an_artefact_are_no_damage(store):
    folder = make(store).ref.folder
    (folder / ".DS_Store").write_bytes(b"x")
    assert make(store).cached


def test_large_files_are_recalled_and_still_checked(store, monkeypatch):
    monkeypatch.setattr(artifacts, "_REREAD_BYTES", 100)
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

    with pytest.raises(ClipScgiError, match=r"is full: stage caption could not finish. Free some space"):
        make(store, fail)
    assert list((store.root / "stages" / "caption").iterdir()) == []
    assert not make(store).cached


def test_a_failing_remake_keeps_the_damaged_artefact(store):
    """What a person may still want to rescue is not deleted before there is something better."""
    folder = make(store).ref.folder
    (folder / "rows.txt").unlink()
    with pytest.raises(RuntimeError):
        make(store, lambda _: (_ for _ in ()).throw(RuntimeError))
    assert (folder / "deep" / "more.bin").exists()


def test_a_stage_that_writes_nothing_is_an_error(store):
    with pytest.raises(DataError, match="stage caption wrote no file"):
        make(store, lambda folder: None)
    assert store.find("caption", FINGERPRINT) is None


def test_an_incomplete_artefact_can_be_read_and_is_never_found(store):
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
        store.make("caption", {"path": Path("x")}, produce)
    with pytest.raises(ValueError, match="JSON"):
        store.make("caption", {"rate": float("nan")}, produce)


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
    made = ArtifactStore(root).make("caption", INGREDIENTS, slow)
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


def test_other_artefacts_do_not_wait(store):
    """The lock is one artefact's: while captioning holds its own, a training can be made."""

    def nested(folder):
        produce(folder)
        assert not store.make("train", INGREDIENTS, produce).cached

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

    store.make("caption", INGREDIENTS, hang)


def test_a_kill_during_produce_loses_nothing_but_time(store):
    for _ in range(2):
        ready = FORK_SERVER.Event()
        process = FORK_SERVER.Process(target=_make_until_killed, args=(store.root, ready))
        process.start()
        assert ready.wait(30)
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
        store.make("caption", {"number": number}, produce)


def test_kills_at_any_moment_leave_no_half_artefact(store):
    for round_ in range(8):
        run_and_kill(_make_many, store.root, 100 * round_, after=0.03 + 0.02 * round_)
    folders = [path for path in (store.root / "stages" / "caption").iterdir() if not path.name.startswith(".")]
    assert folders
    assert {tuple(store.problems("caption", path.name)) for path in folders} == {()}
    _make_some = [store.make("caption", {"number": number}, produce) for number in (0, 100, 200)]
    assert all(store.find("caption", made.ref.fingerprint) == made.ref for made in _make_some)


def test_readers_meet_an_artefact_that_is_being_replaced(store):
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
