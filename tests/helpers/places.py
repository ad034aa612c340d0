"""The folder of the repository, working folders of tests, and real data that some tests use where it exists."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import PIL
import pytest

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden"


def working_copy(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, columns: int) -> Path:
    """Copy `base` into `folder`, make that the working folder and its `home` the artifact root; return it."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLIP_SCGI_HOME", str(folder / "home"))
    monkeypatch.setenv("COLUMNS", str(columns))
    return folder


def shared_folder(*parts: str) -> Path:
    """Return a folder of real data outside the project; skip the test if it does not exist."""
    root = Path(os.environ.get("CLIP_SCGI_SHARED") or REPO.parent / "shared")
    folder = root.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"real data not found: {'/'.join(parts)} (set CLIP_SCGI_SHARED to the folder that contains it)")
    return folder


def require_pinned_pillow() -> None:
    """Skip the test unless Pillow is the one of requirements.lock: others draw and encode some pixels otherwise."""
    (pinned,) = re.findall(r"^pillow==(\S+)$", (REPO / "requirements.lock").read_text(), re.MULTILINE)
    if PIL.__version__ != pinned:
        pytest.skip(f"the golden images are those of Pillow {pinned}, and this is {PIL.__version__}")
