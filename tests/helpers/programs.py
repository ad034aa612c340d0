"""Modules that run as programs, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from tests.helpers.places import REPO

CLIP_SCGI = "flows.cli.app"


def run_module(
    module: str, *words: str, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module words`` in the repository's folder and return its output; it may fail."""
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process that imports this repository, and return its output; it may fail."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
