"""Layout of the packages: at most twelve modules per folder, and no import cycle between folders."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.imports import imports_of
from tests.helpers.places import REPO

PACKAGES = ("data", "captioning", "reid", "flows", "tools")
MOST = 12


def modules() -> dict[str, Path]:
    """Return dotted name -> file of every module."""
    files = sorted(path for package in PACKAGES for path in (REPO / package).rglob("*.py"))
    return {path.relative_to(REPO).with_suffix("").as_posix().replace("/", "."): path for path in files}


def folder_of(module: str) -> str:
    """Return the folder of a module in its package, or the module itself if it lies directly in the package."""
    return ".".join(module.split(".")[:2])


def folders_of(files: Mapping[str, Path], root: Path = REPO) -> dict[str, set[str]]:
    """Return folder -> the folders that its modules import from."""
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        below = {folder_of(name) for name in imports_of(path, root) if name in files}
        graph.setdefault(folder_of(module), set()).update(below - {folder_of(module)})
    return graph


def test_no_folders_import_each_other_in_a_cycle():
    graph = folders_of(modules())
    assert len(graph) > 40
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these folders import each other in a cycle: {' <- '.join(error.args[1])}")


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "a.py").write_text("from data.b.x import y\n")
    (tmp_path / "x.py").write_text("def f():\n    import data.a\n")
    graph = folders_of({"data.a": tmp_path / "a.py", "data.b.x": tmp_path / "x.py"}, tmp_path)
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_no_folder_has_too_many_modules():
    folders: dict[Path, int] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    crowded = {folder.relative_to(REPO).as_posix(): count for folder, count in folders.items() if count > MOST}
    assert crowded == {}
