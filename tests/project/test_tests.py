"""Rules for the tests themselves: what they may replace, and their order."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST
from tests.helpers.places import REPO
from tests.helpers.scratch import too_much

OURS = ("data", "captioning", "reid", "flows", "tools", "benchmarks")
FILES = sorted((REPO / "tests").rglob("*.py"))
PATCHING = {"setattr", "delattr", "object", "patch"}


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def imported_as(tree: ast.AST) -> dict[str, str]:
    """Return the names that imports bind, each with the dotted name of what it is bound to."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
            tops = [alias.name.split(".")[0] for alias in node.names if not alias.asname]
            found |= dict(zip(tops, tops, strict=True))
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """Return the dotted name of an expression such as `module.Class`, or "" if it is something else."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def replaced(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything of the project that the code patches."""
    names = imported_as(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called not in PATCHING:
            continue
        owner = dotted(node.args[0], names)
        if owner and len(node.args) > 1:
            yield node.lineno, f"{owner}.{text(node.args[1])}"
        elif text(node.args[0]):
            yield node.lineno, text(node.args[0])


def assigned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything that the code assigns to or deletes by a dotted name."""
    names = imported_as(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.lineno, dotted(node, names)


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def is_closed(name: str) -> bool:
    """Return True for a private name and for a constant: neither may be replaced from outside."""
    return name.startswith("_") or name.isupper()


def forbidden(tree: ast.AST) -> list[str]:
    """Return the replacements of private names and constants, and every direct assignment to a module."""
    patched = [(line, name) for line, name in replaced(tree) if is_ours(name) and is_closed(name.rsplit(".")[-1])]
    set_ = [(line, name) for line, name in assigned(tree) if is_ours(name) and is_module(name.rpartition(".")[0])]
    return [f"line {line}: {name}" for line, name in sorted(patched + set_)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_test_replaces_a_private_name_or_a_constant(path):
    """A limit is a parameter with a default, and a dependency is an argument."""
    assert forbidden(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from data import files\nmonkeypatch.setattr(files, '_LIMIT', 1)",
        "from data import files as f\nmonkeypatch.setattr(f, 'LIMIT', 1)",
        "import data.files\nmonkeypatch.setattr(data.files, '_write', None)",
        "from data.artifacts.store import ArtifactStore\nmonkeypatch.setattr(ArtifactStore, '_inspect', None)",
        "monkeypatch.setattr('data.files._LIMIT', 1)",
        "from unittest import mock\nfrom data import files\nmock.patch.object(files, '_LIMIT', 1)",
        "from unittest.mock import patch\npatch('data.files.LIMIT', 1)",
        "from data import files\nfiles.write_json = None",
        "from data import files\ndel files.write_json",
    ],
)
def test_a_replacement_is_found(code):
    assert len(forbidden(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import os\nmonkeypatch.setattr(os, '_exit', None)",
        "from data import files\nmonkeypatch.setattr(files, 'write_json', None)",
        "from data.config import Config\nconfig = Config()\nconfig._x = 1",
        "monkeypatch.setattr('data.files.os.fsync', None)",
    ],
)
def test_other_replacements_are_left_alone(code):
    assert forbidden(ast.parse(code)) == []


def test_the_groups_that_go_first_exist():
    files = [REPO / "tests" / f"{group}.py" for group in LONGEST_FIRST if group != "flow"]
    assert [path for path in files if not path.is_file()] == []


def test_a_run_that_fills_the_disk_is_named(tmp_path):
    (tmp_path / "trained0/model").mkdir(parents=True)
    (tmp_path / "trained0/model/weights").write_bytes(bytes(2_000_000))
    (tmp_path / "trained-current").symlink_to(tmp_path / "trained0")
    (tmp_path / "small").write_bytes(bytes(1000))
    assert too_much([tmp_path], most=2.1) == []
    head, first, *_ = too_much([tmp_path], most=2)
    assert head.startswith("the tests left 2 MB (allowed: 2)")
    assert first.split() == ["2.0", "MB", str(tmp_path / "trained0")]


def test_a_test_that_passed_leaves_no_folder(pytestconfig):
    assert pytestconfig.getini("tmp_path_retention_policy") == "failed"
    assert Path(tempfile.gettempdir()).name.startswith("tests-"), "temporary files are removed at the end of the run"
