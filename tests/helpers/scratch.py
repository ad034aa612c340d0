"""The disk space that a run of the tests uses."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

MOST_LEFT = 400
"""Megabytes that may be left when all tests have passed: the folders of the session, and what torch has compiled."""


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return _size(path)
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _size(path: Path) -> float:
    try:
        return path.lstat().st_size / 1e6
    except OSError:  # removed in the meantime
        return 0.0


def too_much(folders: Iterable[Path], most: float = MOST_LEFT) -> list[str]:
    """Return one line per large entry of `folders` if they hold more than `most` megabytes together."""
    sizes = {path: megabytes(path) for folder in folders for path in folder.iterdir()}
    total = sum(sizes.values())
    if total <= most:
        return []
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:20]
    return [
        f"the tests left {total:.0f} MB (allowed: {most:.0f}); make the folders of a file with module_folder:",
        *(f"{sizes[path]:8.1f} MB  {path}" for path in largest),
    ]
