"""Import rules between packages, read from the syntax tree, and the libraries that a fully cached run must not load."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.imports import imports_of
from tests.helpers.places import REPO
from tests.helpers.programs import run_code

PACKAGES = ("data", "captioning", "reid", "flows")

# flows -> captioning, reid -> data. captioning and reid meet in a Parquet schema and an artifact reference only.
ALLOWED = {
    "data": {"data"},
    "captioning": {"captioning", "data"},
    "reid": {"reid", "data"},
    "flows": set(PACKAGES),
}
# Library -> the only place that may import it: a package, or a single module.
OWNERS = {
    "prefect": "flows",
    "transformers": "captioning",
    "bitsandbytes": "captioning",
    "open_clip": "reid/models/backbone.py",
    "matplotlib": "flows/report/charts.py",
}
# Reading a pickle runs code: weights are safetensors, tables are Parquet, the rest is JSON.
BANNED = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Users run it on their own files. It may name pickle's error and read tensors, and no module may import it.
CONVERTER = "reid/convert.py"


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (REPO / package).rglob("*.py"))


def name_of(path: Path, root: Path = REPO) -> str:
    return path.relative_to(root).as_posix()


def tops_of(path: Path, root: Path = REPO) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path, root)}


def test_every_package_has_modules():
    assert {name_of(path).split("/")[0] for path in modules()} == set(PACKAGES)


def check_direction(path: Path, root: Path = REPO) -> None:
    package = name_of(path, root).split("/")[0]
    foreign = tops_of(path, root) & (set(PACKAGES) | {"tests", "benchmarks"}) - ALLOWED[package]
    assert not foreign, (
        f"{name_of(path, root)} may not import {sorted(foreign)}; the direction is flows -> captioning, reid -> data"
    )


def check_owners(path: Path, root: Path = REPO) -> None:
    name, tops = name_of(path, root), tops_of(path, root)
    for library in tops & OWNERS.keys():
        owner = OWNERS[library]
        assert name == owner or name.startswith(f"{owner}/"), f"{name} imports {library}; only {owner} may"
    if name.startswith("data/"):
        assert "torch" not in tops, f"{name} imports torch; data must not"


def check_pickle(path: Path, root: Path = REPO) -> None:
    name = name_of(path, root)
    is_converter = name == CONVERTER
    assert not tops_of(path, root) & (BANNED - ({"pickle"} if is_converter else set()))
    assert not [i for i in imports_of(path, root) if f"{i}.".startswith("reid.convert.")], "reid.convert is a command"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target = ast.unparse(call.func)
        assert not target.startswith("pickle."), f"{name}: {target}"
        if is_converter and target == "torch.load":
            assert [ast.unparse(w.value) for w in call.keywords if w.arg == "weights_only"] == ["True"]
            continue
        assert target not in ("torch.load", "torch.save", "pd.read_pickle"), f"{name}: {target}"
        allowed = [word for word in call.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
        assert not allowed, f"{name} line {call.lineno}: allow_pickle"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_import_direction(path):
    check_direction(path)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_libraries_have_one_owner(path):
    check_owners(path)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_nothing_unpickles(path):
    check_pickle(path)


def test_the_rules_catch_what_they_should(tmp_path):
    """Run the checks on a module that breaks every rule."""
    bad = tmp_path / "data" / "sub" / "bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "import torch.nn as nn\n"
        "from ..readers import base\n"
        "from . import sibling\n"
        "def f():\n    from prefect import flow\n    import importlib; importlib.import_module('reid.models.heads')\n"
    )
    assert imports_of(bad, tmp_path) == {
        "torch.nn",
        "data.readers",
        "data.readers.base",
        "data.sub",
        "data.sub.sibling",
        "prefect",
        "prefect.flow",
        "importlib",
        "reid.models.heads",
    }
    for check in (check_direction, check_owners):
        with pytest.raises(AssertionError):
            check(bad, tmp_path)
    converter = tmp_path / CONVERTER
    converter.parent.mkdir()
    for path, code in (
        (bad, "import numpy as np\nnp.load('x', allow_pickle=True)\n"),
        (bad, "from reid.convert import convert\n"),
        (bad, "import torch\ntorch.load('x', weights_only=True)\n"),
        (converter, "import torch\ntorch.load('x')\n"),
        (converter, "import pickle\npickle.load(open('x', 'rb'))\n"),
    ):
        path.write_text(code)
        with pytest.raises(AssertionError):
            check_pickle(path, tmp_path)


# Importing one of these must load no engine: a fully cached run imports them all.
LIGHT = ("config", "stage", "templates", "attributes", "store", "audit")
HEAVY = ("torch", "transformers", "open_clip", "bitsandbytes", "accelerate", "torchvision", "prefect")


def light_modules() -> list[str]:
    found = [path for path in modules() if name_of(path).startswith("data/")]
    for package in ("captioning", "reid"):
        for path in modules():
            stem = path.stem
            if name_of(path).startswith(f"{package}/") and any(stem == w or stem.startswith(f"{w}_") for w in LIGHT):
                found.append(path)
    names = [name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in found]
    return sorted(set(names))


def test_light_modules_load_no_engine():
    """Import them one by one in one process, and name the first module after which a heavy library is loaded."""
    code = (
        "import importlib, sys\n"
        f"heavy, seen = {HEAVY!r}, set()\n"
        f"for name in {light_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    new = {h for h in heavy if h in sys.modules} - seen\n"
        "    seen |= new\n"
        "    if new: print(name, 'loads', *sorted(new))\n"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
