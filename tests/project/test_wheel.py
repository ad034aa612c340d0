"""The wheel: the four packages and the files that they read at run time, and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.helpers.imports import imported_names
from tests.helpers.places import REPO

PACKAGES = ("data", "captioning", "reid", "flows")
OTHERS = ("tools", "benchmarks", "tests", "docs")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE")
# The console script, the flow that a deployment names, the converter, and what a library user imports.
ENTRIES = (
    "flows.cli.app",
    "flows.pipeline",
    "reid.convert",
    "reid.metrics",
    "data.datasets",
    "captioning.attributes",
)
# A model card belongs to its weights, and people read it.
CARDS = ("captioning/weights/tiny_llava/README.md", "reid/weights/tiny_clip/README.md")
MOST_BYTES = 11_000_000  # 10,593,000 on 2026-11-26, of which 9,606,000 are the weights of the embedded models


@pytest.fixture(scope="module")
def wheel(module_folder) -> Path:
    """Build the wheel from a copy of the project."""
    source, out = module_folder("source"), module_folder("wheel")
    for folder in (*PACKAGES, *OTHERS):
        shutil.copytree(REPO / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(REPO / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def sources(wheel) -> dict[str, str]:
    """Return the text of every file of the wheel by its path; "" where it is not text. The metadata is left out."""
    with ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name).decode("utf-8", errors="replace") for name in names}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def mentioned(code: str) -> set[str]:
    """Return the dotted names that the code imports, and its string constants."""
    tree = ast.parse(code)
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return imported_names(tree) | {value for value in constants if isinstance(value, str)}


def reached(modules: Mapping[str, str], entries: Iterable[str]) -> dict[str, set[str]]:
    """Return what each module that the entries lead to mentions; a name in a string counts (``python -m name``)."""
    found: dict[str, set[str]] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found or name not in modules:
            continue
        found[name] = mentioned(modules[name])
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [*found[name], *parents]
    return found


def unused(sources: Mapping[str, str]) -> list[str]:
    """Return the files that no entry leads to: modules not imported, and other files that no code or template names."""
    modules = {module_of(path): text for path, text in sources.items() if path.endswith(".py")}
    used = reached(modules, ENTRIES)
    words = {Path(word).name for mentions in used.values() for word in mentions}
    templates = "".join(text for path, text in sources.items() if path.endswith(".j2"))
    return [
        path
        for path in sources
        if path not in CARDS
        and not (module_of(path) in used if path.endswith(".py") else _is_named(Path(path).name, words, templates))
    ]


def _is_named(name: str, words: set[str], templates: str) -> bool:
    return name in words or f'"{name}"' in templates or f'/{name}"' in templates


def test_the_wheel_contains_the_four_packages_only(sources):
    assert {name.split("/")[0] for name in sources} == set(PACKAGES)


def test_no_file_of_the_wheel_is_unused_at_run_time(sources):
    assert len(sources) > 100
    assert unused(sources) == []


def test_an_unused_file_would_be_found(sources):
    left = {"reid/left.py": "import reid.leftover", "reid/leftover.py": "", "flows/templates/left.css": ""}
    assert unused({**sources, **left}) == list(left)


def test_the_wheel_stays_small(wheel):
    assert wheel.stat().st_size < MOST_BYTES
