"""The settings of `make mutants`, which CI does not run: its files and its Hypothesis profile exist."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.places import REPO


@pytest.fixture(scope="module")
def mutmut() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["mutmut"]


@pytest.mark.parametrize("key", ["source_paths", "only_mutate", "pytest_add_cli_args_test_selection", "also_copy"])
def test_every_path_exists(mutmut, key):
    assert [path for path in mutmut[key] if not (REPO / path).exists()] == []


def test_the_profile_is_registered_and_stops_at_the_first_failure(mutmut):
    (name,) = [
        word.partition("=")[2] for word in mutmut["pytest_add_cli_args"] if word.startswith("--hypothesis-profile")
    ]
    profile = settings.get_profile(name)
    assert profile.derandomize
    assert "shrink" not in {phase.name for phase in profile.phases}
