"""Where the repository lies, and real data beside it that some tests use if it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def shared_folder(*parts: str) -> Path:
    """Return a folder of real data that lies outside the project, or skip the test with the reason."""
    root = Path(os.environ.get("CLIP_SCGI_SHARED") or REPO.parent / "shared")
    folder = root.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"real data is not here: {'/'.join(parts)} (set CLIP_SCGI_SHARED to the folder that holds it)")
    return folder
