"""What several test files share: folders, a small synthetic data set, and Prefect's test server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import Phase, settings

REPO = Path(__file__).resolve().parents[1]

# For `make mutants`: the first failure of a property counts, so a smaller example is not looked for.
settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


def shared_folder(*parts: str) -> Path:
    """Return a folder of real data that lies outside the project, or skip the test with the reason."""
    root = Path(os.environ.get("CLIP_SCGI_SHARED") or REPO.parent / "shared")
    folder = root.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"real data is not here: {'/'.join(parts)} (set CLIP_SCGI_SHARED to the folder that holds it)")
    return folder


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test touches the artefacts or the Prefect settings of the person who runs it."""
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def one_thread():
    """One thread of torch, so that sums are taken in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prefect_server():
    """Prefect's own server on a database of its own. Whoever uses it carries the mark ``xdist_group("flow")``."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
