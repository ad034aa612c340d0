"""Finished artifacts by the name that a user gives: a fingerprint, a folder, or a recipe for its newest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.artifacts.inventory import Entry, take_inventory
from data.artifacts.store import ArtifactStore, read_uses
from data.errors import ConfigError
from flows.recipes import RECIPES

_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a name is looked up for.

    command: the beginning of messages. stages: whose artifacts qualify, the usual one first. file: what their folders
    contain. one, many: such as "an evaluation" and "evaluations". done: what a recipe was for it, such as "evaluated".
    """

    command: str
    stages: tuple[str, ...]
    file: str
    one: str
    many: str
    done: str


def folder_named(name: str, store: ArtifactStore, kind: Kind) -> Path:
    """Return the folder of the artifact that `name` names; raise ConfigError if none has that name, or several have.

    name: the beginning of a fingerprint (with or without ``stage/``), a folder, or a recipe.
    """
    entries = [entry for stage in kind.stages for entry in take_inventory(store, stage).entries]
    entries = sorted((entry for entry in entries if entry.state == "finished"), key=lambda entry: entry.created)
    found = [entry.folder for entry in entries if name and _is_start(name, entry)]
    if _is_folder_with(name, kind.file):
        found.append(Path(name).expanduser())
    of_recipe = [entry for entry in entries if any(use["recipe"] == name for use in read_uses(entry.folder))]
    found += [entry.folder for entry in of_recipe[-1:]]
    distinct = list(dict.fromkeys(folder.resolve() for folder in found))
    if len(distinct) == 1:
        return distinct[0]
    if distinct:
        shown = ", ".join(map(str, distinct[:_SHOWN]))
        raise ConfigError(
            f"{kind.command}: {name!r} names {len(distinct)} {kind.many} ({shown}); give one of these folders"
        )
    raise ConfigError(_unknown(name, store, entries, kind))


def _unknown(name: str, store: ArtifactStore, entries: Sequence[Entry], kind: Kind) -> str:
    stage = kind.stages[0]
    if name in RECIPES:
        return (
            f"{kind.command}: the recipe {name} has not been {kind.done} in {store.root}; run "
            f"`clip-scgi {stage} {name}` first, with the --set options of your data"
        )
    recipes = sorted({use["recipe"] for entry in entries for use in read_uses(entry.folder)})
    known = f"recipes {kind.done} there: {', '.join(recipes)}" if recipes else f"no recipe has been {kind.done} there"
    return (
        f"{kind.command}: {name!r} does not name {kind.one}: it is not a folder with {kind.file}, and neither the "
        f"fingerprint of {_article(stage)} {stage} artifact in {store.root} nor a recipe {kind.done} there; {known}. "
        f"`clip-scgi artifacts ls --stage {stage}` lists the {kind.many}"
    )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _is_folder_with(name: str, file: str) -> bool:
    try:
        return bool(name) and (Path(name).expanduser() / file).is_file()
    except (OSError, RuntimeError, ValueError):  # too long, the home of an unknown user, with a NUL
        return False


def _is_start(name: str, entry: Entry) -> bool:
    return entry.key.startswith((name, f"{entry.stage}/{name}"))
