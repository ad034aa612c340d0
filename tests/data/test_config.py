"""Configs: identity, validation with all problems together, immutability."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from data.artifacts.fingerprint import canonical_json
from data.config import RUNTIME, Config, RuntimeInt, build_config
from data.errors import ConfigError
from tests.helpers.places import REPO


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(Config):
    """A part."""

    size: int = Field(default=3, ge=1)
    """How big."""
    workers: RuntimeInt = 2
    """How many."""


class Outer(Config):
    """A whole."""

    name: str
    """Its name."""
    inner: Inner = Inner()
    """One part."""
    parts: tuple[Inner, ...] = ()
    """More parts."""
    by_name: dict[str, Inner] = Field(default_factory=dict)
    """And more."""
    colors: frozenset[Color] = frozenset()
    """Colors."""
    rate: float = 1.0
    """A number."""
    threads: RuntimeInt | None = None
    """How many, perhaps."""
    log: Annotated[Path | None, RUNTIME] = None
    """Where to write."""


def test_identity_holds_what_can_change_a_result_and_nothing_else():
    one = Outer(name="x", inner=Inner(size=4, workers=1), parts=(Inner(workers=1),), by_name={"a": Inner(workers=1)})
    two = Outer(
        name="x",
        inner=Inner(size=4, workers=9),
        parts=(Inner(workers=9),),
        by_name={"a": Inner(workers=9)},
        threads=5,
        log=Path("/var"),
    )
    expected = {
        "name": "x",
        "inner": {"size": 4},
        "parts": [{"size": 3}],
        "by_name": {"a": {"size": 3}},
        "colors": [],
        "rate": 1.0,
    }
    assert one.identity() == two.identity() == expected
    assert canonical_json(one.identity())
    changed = {"name": "y"}, {"inner": Inner(size=5)}, {"parts": ()}, {"rate": 2}, {"colors": frozenset(Color)}
    for change in changed:
        assert one.model_copy(update=change).identity() != expected


def test_identity_is_the_same_in_every_process():
    code = (
        "from data.config import Config\n"
        "class C(Config):\n"
        "    colors: frozenset[str]\n"
        "print(C(colors=['red', 'blue', 'green', 'pink']).identity())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "3")
    ]
    assert {process.communicate()[0] for process in processes} == {"{'colors': ['blue', 'green', 'pink', 'red']}\n"}


def test_build_config_lists_every_problem_with_its_key():
    values = {"inner": {"size": 0, "sise": 1}, "rate": float("nan"), "threads": "many"}
    with pytest.raises(ConfigError) as error:
        build_config(Outer, values, "recipe demo")
    text = str(error.value)
    assert text.startswith("recipe demo: 5 problems\n")
    for part in (
        "name: Field required",
        "inner.size: Input should be greater than or equal to 1 (given: 0)",
        "inner.sise: no such setting; did you mean inner.size?",
        "rate: ",
        "threads: ",
    ):
        assert part in text
    assert build_config(Outer, {"name": "x", "inner": {"size": 7}}, "x").inner.size == 7


def test_configs_are_frozen_and_keyword_only():
    config = Outer(name="x")
    with pytest.raises(ValueError, match="frozen"):
        config.name = "y"
    with pytest.raises(TypeError):
        Outer("x")
    assert Outer.model_fields["rate"].description == "A number."
