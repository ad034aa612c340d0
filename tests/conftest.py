"""Fixtures of all tests: a home of its own per test, one thread of torch, and Prefect's test server."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

# For `make mutants`: the first failure of a property counts, so no smaller example is searched for.
settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Keep every test away from the artifacts and the hub of the person who runs it."""
    monkeypatch.setenv("CLIP_SCGI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def one_thread():
    """Use one thread of torch, so that sums are taken in a fixed order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prefect_server():
    """Run Prefect's server on a temporary database. Tests that use it need the mark ``xdist_group("flow")``."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
