"""Canonical JSON, digests, and the memory of digests, in company and damaged."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.artifacts import digests
from data.artifacts.digests import DigestMemo, Stamp, path_range
from data.artifacts.fingerprint import canonical_json, digest, digest_file
from data.errors import RetryableError
from tests.helpers.fresh_processes import FORK_SERVER, join_all

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


@settings(max_examples=60)
@given(PLAIN)
def test_canonical_json_loses_nothing(value):
    assert same(json.loads(canonical_json(value)), value)


@settings(max_examples=60)
@given(PLAIN, PLAIN)
def test_canonical_json_is_equal_only_for_equal_values(a, b):
    assert (canonical_json(a) == canonical_json(b)) == same(a, b)
    assert (digest(a) == digest(b)) == same(a, b)


@settings(max_examples=40)
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
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # long before the file's own times
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


def test_memo_waits_for_a_process_that_holds_a_new_file(tmp_path):
    path = tmp_path / "memo.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("CREATE TABLE other (a)")
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("INSERT INTO other VALUES (1)")
        timer = threading.Timer(0.5, holder.execute, ("COMMIT",))
        timer.start()
        DigestMemo(path).remember({"/a": (Stamp(1, 2, 3), "f" * 64)})
        timer.join()
    assert DigestMemo(path).files_with(["f" * 64]) == [(Path("/a"), "f" * 64)]


def test_memo_of_many_processes(tmp_path):
    path = tmp_path / "memo.sqlite"
    processes = [FORK_SERVER.Process(target=_remember_some, args=(path, number)) for number in range(6)]
    for process in processes:
        process.start()
    join_all(processes)
    assert [process.exitcode for process in processes] == [0] * 6
    assert len(DigestMemo(path).recall(Path("/x"))) == 60
