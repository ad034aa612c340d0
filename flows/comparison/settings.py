"""The settings by which two runs differ: those of the training and of the evaluation that can change a score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from data.artifacts.store import ArtifactStore
from data.config import Config, is_runtime
from data.errors import DataError, counted
from flows.comparison.runs import Run
from flows.reasons.tables import CAPTIONS, corrected_captions
from reid.config.evaluate import EvaluateConfig
from reid.config.trained import read_trained, trained_config

_ABSENT: Final = "–"
_CORRECT: Final = "correct"
_INPUTS: Final = {"dataset_hash": "training dataset", "captions": "training captions"}
"""Key in the provenance of a model -> name of what it was trained on."""


class SettingPair(NamedTuple):
    """One setting (its dotted key) or input of the training with different values, as text."""

    key: str
    baseline: str
    run: str


def differing_settings(baseline: Run, other: Run, store: ArtifactStore) -> tuple[SettingPair, ...]:
    """Return the settings by which two runs differ, in the order of their configs.

    The settings of a training are known if its artifact is in `store`, those of an evaluation if its folder has an
    artifact.json; what is unknown for one of the two is not listed.
    """
    pairs = []
    for part in (_training, _evaluation):
        ours, theirs = part(baseline, store), part(other, store)
        if ours and theirs:
            keys = dict.fromkeys([*ours, *theirs])
            pairs += [SettingPair(key, ours.get(key, _ABSENT), theirs.get(key, _ABSENT)) for key in keys]
    return tuple(_explained(pair, store) for pair in pairs if pair.baseline != pair.run)


def _explained(pair: SettingPair, store: ArtifactStore) -> SettingPair:
    """Return a pair with short fingerprints of inputs, and the number of captions that differ by corrections."""
    if pair.key not in _INPUTS.values():
        return pair
    corrected = _corrected(pair, store) if pair.key == _INPUTS["captions"] else ""
    return SettingPair(pair.key, pair.baseline[:8], pair.run[:8] + corrected)


def _corrected(pair: SettingPair, store: ArtifactStore) -> str:
    """Return " (2 captions corrected)" if a step correct made the captions of one run or both, else ""."""
    found = {
        item.fingerprint: item.folder for stage in CAPTIONS.stages for item in store.sidecars(stage) if item.fingerprint
    }
    old, new = found.get(pair.baseline), found.get(pair.run)
    if old is None or new is None or not any(folder.parent.name == _CORRECT for folder in (old, new)):
        return ""
    count = corrected_captions(old, new)
    return f" ({counted(count, 'caption')} corrected)" if count else ""


def _training(run: Run, store: ArtifactStore) -> dict[str, str]:
    folder = _model_folder(run, store)
    if folder is None:
        return {}
    try:
        trained = read_trained(folder)
        settings = dict(_texts(trained_config(trained), "train."))
    except (DataError, OSError, KeyError, TypeError, ValidationError):  # written by another version
        return {}
    provenance = trained.get("provenance", {})
    inputs = {name: str(provenance.get(key) or _ABSENT) for key, name in _INPUTS.items()}
    return settings | inputs


def _model_folder(run: Run, store: ArtifactStore) -> Path | None:
    if not run.model:
        return None
    trained = (item for item in store.sidecars("train") if item.files.get("model.safetensors") == run.model)
    return next((item.folder for item in trained), None)


def _evaluation(run: Run, store: ArtifactStore) -> dict[str, str]:
    try:
        return dict(_texts(EvaluateConfig.model_validate(run.settings), "evaluate.")) if run.settings else {}
    except ValidationError:  # written by another version
        return {}


def _texts(config: Config, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield key and value of every setting that can change a result, those of nested configs under their own keys."""
    plain = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _texts(value, f"{prefix}{name}.")
        elif not is_runtime(field):
            yield f"{prefix}{name}", _text(plain[name])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
