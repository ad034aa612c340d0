"""One small run, which several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.summary import RunSummary
from tests.helpers.small_runs import demo_run


@pytest.fixture(scope="session")
def finished(prefect_server, tmp_path_factory) -> tuple[Path, RunSummary]:
    """Run the small demo once; return its home, which tests must not change, and its summary."""
    home = tmp_path_factory.mktemp("home")
    return home, demo_run(home)
