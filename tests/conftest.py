"""What several test files share: folders, a small synthetic data set, and Prefect's test server."""

from __future__ import annotations

import pytest


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
