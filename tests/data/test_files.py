"""Atomic writes, also when the process is killed; paths that stay in their root."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import ClipScgiError, ConfigError, DataError, RejectedRow, raise_problems
from data.files import atomic_path, inside, read_json, write_json, write_table, write_text
from tests.helpers.fresh_processes import run_and_kill


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


def test_problems_are_raised_together():
    raise_problems("x", [])
    with pytest.raises(ConfigError, match=r"^x: one$"):
        raise_problems("x", ["one"])
    with pytest.raises(DataError, match=r"^x: 2 problems\n  - one\n  - two$"):
        raise_problems("x", iter(["one", "two"]), DataError)
    assert issubclass(DataError, ClipScgiError)
