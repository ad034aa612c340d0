"""The rooms of the house: few modules in a folder, and no import that runs back up between folders."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.places import REPO

PACKAGES = ("data", "captioning", "reid", "flows", "tools")
MOST = 12


def modules() -> dict[str, Path]:
    """Return dotted name -> file of every module."""
    files = sorted(path for package in PACKAGES for path in (REPO / package).rglob("*.py"))
    return {path.relative_to(REPO).with_suffix("").as_posix().replace("/", "."): path for path in files}


def room_of(module: str) -> str:
    """Return the folder of a package that a module lives in, or the module itself where it lies in none."""
    return ".".join(module.split(".")[:2])


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, also inside functions; of ``from a import b`` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return room -> the rooms that its modules import from."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        below = {room_of(name) for name in imported(path) if name in files}
        graph.setdefault(room_of(module), set()).update(below - {room_of(module)})
    return graph


def test_no_import_runs_back_up():
    graph = rooms(modules())
    assert len(graph) > 40
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these rooms import each other in a circle: {' <- '.join(error.args[1])}")


def test_a_circle_would_be_found(tmp_path):
    (tmp_path / "a.py").write_text("from data.b.x import y\n")
    (tmp_path / "x.py").write_text("def f():\n    import data.a\n")
    graph = rooms({"data.a": tmp_path / "a.py", "data.b.x": tmp_path / "x.py"})
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_no_folder_is_crowded():
    folders: dict[Path, int] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    crowded = {folder.relative_to(REPO).as_posix(): count for folder, count in folders.items() if count > MOST}
    assert crowded == {}
