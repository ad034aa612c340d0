"""Why a stage runs: the ingredients that changed since the last comparable artifact.

Reads the sidecars of one stage and, if images or captions changed, the tables that differ. This is done only for stages
that have to run anyway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from data.artifacts.inventory import in_progress
from data.artifacts.store import ArtifactRef, ArtifactStore, Sidecar
from data.stages.stage import Plan
from flows.reasons.tables import CAPTIONS, IMAGES, behind, between
from flows.reasons.texts import sentence_changes
from flows.recipes import setting_default
from reid.config.renamed import RENAMED

FIRST: Final = "first run"
ELSEWHERE: Final = "another process was making it"
_SHOWN: Final = 3
_LONGEST: Final = 40  # characters of a value that is shown
_DIGEST: Final = re.compile(r"^[0-9a-f]{12,64}$")
_VERSIONS: Final = {"version": "code version", "stage_version": "code version", "schema_version": "schema version"}
_SETTINGS: Final = ("config", "recipe", "cleaning")
_TABLES: Final = {"images": IMAGES, "test_images": IMAGES, "captions": CAPTIONS}
_ABSENT: Final = object()

Leaves = dict[tuple[str, ...], Any]


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """Dataset and recipe of a run. Its predecessors are the artifacts that runs with both the same have used."""

    dataset: str
    recipe: str


def reason(store: ArtifactStore, plan: Plan, purpose: Purpose) -> str:
    """Return why the stage of `plan` has to run, in a few words; call this before the stage runs.

    The predecessor is the artifact that shares most ingredients among those used for `purpose`; of several, it is the
    one used last. If there are none, artifacts without a label (from an earlier version) are considered.
    """
    stage, ingredients, fingerprint = plan.stage.name, plan.ingredients, plan.fingerprint
    if f"{stage}-{fingerprint}" in in_progress(store):
        return ELSEWHERE
    problems = store.problems(stage, fingerprint)
    sidecars = store.sidecars(stage)
    if problems and problems != ["absent"]:
        return _unusable(sidecars, fingerprint, problems[0])
    before = _predecessor(sidecars, ingredients, purpose)
    changes = [FIRST] if before is None else changed(store, before.ingredients, ingredients, stage)
    if store.scratch(stage, fingerprint).exists():
        return f"continues an interrupted run ({_listed(changes)})"
    if fingerprint in store.known(stage):
        return "its artifact was deleted, or the run that made it was interrupted"
    return _listed(changes)


def index_reason(store: ArtifactStore, made: ArtifactRef, before: Iterable[str], purpose: Purpose) -> str:
    """Return why the index artifact `made` was made. before: `ArtifactStore.known` of the index stage until then."""
    if made.fingerprint in before:
        return "its artifact was damaged or deleted"
    sidecars = {item.folder.name: item for item in store.sidecars(made.stage)}
    now = sidecars.pop(made.fingerprint).ingredients
    last = _predecessor(sidecars.values(), now, purpose)
    if last is None:
        return FIRST
    changes = changed(store, _index_ingredients(last.ingredients), _index_ingredients(now))
    if "images changed" in changes:
        at = changes.index("images changed")
        changes[at : at + 1] = _image_changes(last.folder, made.folder)
    return _listed(changes or ["the notices about the dataset changed"])


def _image_changes(old: Path, new: Path) -> list[str]:
    """Return what changed between two index artifacts with different hashes: their images, their sentences, or both."""
    details = {"images": between(IMAGES, old, new), "sentences": sentence_changes(old, new)}
    return [f"{name} changed: {', '.join(told)}" for name, told in details.items() if told] or ["images changed"]


def _index_ingredients(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ingredients of an index, grouped by what a user changes: the images and how they are read."""
    described = ingredients["description"]
    return {
        "stage_version": ingredients["stage_version"],
        "schema_version": ingredients["schema_version"],
        "images": described["dataset_hash"],
        "rejected files": ingredients["rejected"],
        "dataset": {name: described[name] for name in ("name", "reader", "version")},
    }


def _unusable(sidecars: Iterable[Sidecar], fingerprint: str, problem: str) -> str:
    if any(item.folder.name == fingerprint and item.fingerprint is None for item in sidecars):
        return "some images failed last time"
    return f"its artifact is damaged: {problem}"


def _predecessor(found: Iterable[Sidecar], ingredients: Mapping[str, Any], purpose: Purpose) -> Sidecar | None:
    everything, label = list(found), {"dataset": purpose.dataset, "recipe": purpose.recipe}
    candidates = [item for item in everything if label in item.uses] or [item for item in everything if not item.uses]
    wanted = leaves(ingredients)
    return max(candidates, key=lambda item: (_shared(leaves(item.ingredients), wanted), item.used), default=None)


def _shared(one: Leaves, other: Leaves) -> int:
    return sum(key in other and other[key] == value for key, value in one.items())


def leaves(value: Any, path: tuple[str, ...] = ()) -> Leaves:
    """Return path of keys -> value for all values in nested JSON objects; a list is one value."""
    if not isinstance(value, Mapping):
        return {path: value}
    found: Leaves = {}
    for key, item in value.items():
        found |= leaves(item, (*path, str(key)))
    return found


def changed(store: ArtifactStore, old: Mapping[str, Any], new: Mapping[str, Any], stage: str = "") -> list[str]:
    """Return one phrase per changed ingredient: both values of a setting, or what changed in the data of a digest.

    stage: whose settings the ingredient "config" has; a setting that is left out of ingredients has its default.
    If the version of the code changed, return only that: the other ingredients may have a different meaning.
    """
    versions = [key for key in _VERSIONS if key in new and old.get(key) != new[key]]
    if versions:
        return [_change(_VERSIONS[key], old.get(key, _ABSENT), new[key]) for key in versions]
    return [phrase for key in dict.fromkeys([*new, *old]) for phrase in _phrases(store, key, old, new, stage)]


def _phrases(store: ArtifactStore, key: str, old: Mapping[str, Any], new: Mapping[str, Any], stage: str) -> list[str]:
    if key == "sentences":
        return _sentence_phrases(old.get(key), new.get(key))
    before, after = leaves(old.get(key, _ABSENT)), leaves(new.get(key, _ABSENT))
    pairs = {
        path: (before.get(path, _ABSENT), after.get(path, _ABSENT))
        for path in dict.fromkeys([*after, *before])
        if before.get(path, _ABSENT) != after.get(path, _ABSENT)
    }
    if not pairs:
        return []
    if key in _SETTINGS:
        return [
            _setting_change(stage if key == "config" else "", _setting(key, path), *pair)
            for path, pair in pairs.items()
        ]
    details = behind(store, _TABLES[key], before.values(), after.values()) if key in _TABLES else []
    if not details and key != "model":
        details = [_change(".".join(path), *pair, named_only="") for path, pair in pairs.items()]
    shown = list(dict.fromkeys(detail for detail in details if detail))
    return [f"{key} changed: {', '.join(shown)}" if shown else f"{key} changed"]


def _sentence_phrases(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """Return how the sentences of an evaluation changed, None being an evaluation without text to image."""
    if old == new:
        return []
    if old is None or new is None:
        return ["text to image is measured" if old is None else "text to image is no longer measured"]
    sources = "" if old["source"] == new["source"] else f": {old['source']} -> {new['source']}"
    return [f"sentences of text to image changed{sources}"]


def _setting(key: str, path: tuple[str, ...]) -> str:
    """Return the current dotted key of a setting; ingredients contain the old keys of renamed ones."""
    name = ".".join(path)
    for group in ("train.", ""):  # the config of the train stage, or a whole recipe
        if group + name in RENAMED:
            name = RENAMED[group + name].removeprefix(group)
    return f"{key}.{name}"


def _setting_change(stage: str, name: str, old: Any, new: Any) -> str:
    """Describe the change of a setting; a value that is left out is the default, if the setting still exists."""
    keys = name.split(".")[1:]
    default = setting_default([stage, *keys] if stage else keys, _ABSENT)
    values = [default if value is _ABSENT else value for value in (old, new)]
    same = _text(values[0]) == _text(values[1])  # the ingredients differ in whether they name the default
    return _change(name, old, new) if same else _change(name, *values)


def _change(name: str, old: Any, new: Any, named_only: str = " changed") -> str:
    """Describe one change by both values, or by its name only if a value is a digest or too long."""
    texts = [_text(value) for value in (old, new)]
    if None in texts:
        # Fingerprint and content of an artifact change together, so its role is named once for both.
        name = re.sub(r"(^|\.)(fingerprint|content)$", "", name.removeprefix("files."))
        return name + named_only if name else ""
    return f"{name} {texts[0]} -> {texts[1]}".strip()


def _text(value: Any) -> str | None:
    if value is _ABSENT:
        return "unset"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return None if len(text) > _LONGEST or _DIGEST.match(text) else text


def _listed(changes: list[str]) -> str:
    more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return "; ".join(changes[:_SHOWN]) + more
