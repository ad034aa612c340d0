"""Imports of a module, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path


def imported_names(tree: ast.AST, package: Sequence[str] = ()) -> set[str]:
    """Return the dotted names that the code imports, inside functions too; for ``from a import b`` both a and a.b.

    package: the parts of the name of the package that the module belongs to, which relative imports start from.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def imports_of(path: Path, root: Path) -> set[str]:
    """Return the dotted names that a file under `root` imports; relative imports are made absolute."""
    package = path.relative_to(root).parent.parts
    return imported_names(ast.parse(path.read_text(encoding="utf-8")), package)
