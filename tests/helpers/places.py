"""The folder of the repository, and folders of real data that some tests use where they exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
GOLDEN = REPO / "tests" / "golden"


def shared_folder(*parts: str) -> Path:
    """Return a folder of real data outside the project; skip the test if it does not exist."""
    root = Path(os.environ.get("CLIP_SCGI_SHARED") or REPO.parent / "shared")
    folder = root.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"real data not found: {'/'.join(parts)} (set CLIP_SCGI_SHARED to the folder that contains it)")
    return folder
