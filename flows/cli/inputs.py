"""Inputs of a command, from its options: the recipe and the artifact store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data.artifacts.store import ArtifactStore
from flows.recipes import ExaminedRecipe, Recipe, build_recipe, examine_recipe
from flows.terminal import notice_line, plain_console


def artifact_store(home: Path | None) -> ArtifactStore:
    """Return the store at `home`; without one, at ``CLIP_SCGI_HOME`` or ``./artifacts``."""
    return ArtifactStore(home) if home else ArtifactStore.default()


def recipe_of(name: str, overrides: Sequence[str], *, size: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a command, and print a notice for each renamed setting that is used by its old key.

    size: settings that `overrides` win over.
    """
    return build_recipe(name, overrides, size=size, notify=_print_once)


def examined_recipe(name: str, overrides: Sequence[str]) -> ExaminedRecipe:
    """Return the recipe of a command and the problems of its settings; print the same notices as `recipe_of`."""
    examined = examine_recipe(name, overrides)
    for notice in examined.notices:
        _print_once(notice)
    return examined


@cache
def _print_once(notice: str) -> None:
    plain_console(stderr=True).print(notice_line(notice), soft_wrap=True)
