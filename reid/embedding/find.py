"""Find a trained model by the fingerprint of its artifact, by the recipe that trained it, or by its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from data.artifacts.fingerprint import digest, digest_file
from data.artifacts.inventory import Entry, take_inventory
from data.artifacts.store import SIDECAR, ArtifactRef, ArtifactStore, read_uses
from data.errors import ConfigError, DataError, WeightsError
from data.files import read_json
from reid.config.trained import CONFIG_FILE
from reid.training.checkpoint import MODEL

TRAIN: Final = "train"
_FILES: Final = (CONFIG_FILE, MODEL)
_SHOWN: Final = 8


def find_model(model: ArtifactRef | Path | str, store: ArtifactStore) -> ArtifactRef:
    """Return the train artifact that `model` names, and mark it as used.

    Args:
        model: a reference; the folder of a train artifact or of a copy of it; or a text: the beginning of a fingerprint
            (with or without ``train/``), the name of a recipe, or a folder. A recipe stands for the model that it
            trained last.
        store: where fingerprints and recipes are looked up.

    Raises:
        ConfigError: no model has that name, or several have.
        WeightsError: a file of the model differs from what its artifact.json lists.
    """
    found = model if isinstance(model, ArtifactRef) else read_model(_folder(model, store))
    if found.stage != TRAIN:
        raise ConfigError(f"{found.path} is an artifact of the stage {found.stage}; give one of the stage {TRAIN}")
    store.touch(found)
    return found


def read_model(folder: Path) -> ArtifactRef:
    """Return the reference of the model in `folder`, after comparing its files with artifact.json, if that exists.

    Without artifact.json, the fingerprint is the digest of the model's files. Raises the errors of `find_model`.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} does not contain a trained model ({' and '.join(missing)} missing); give the folder of a train "
            "artifact, such as artifacts/stages/train/<fingerprint>"
        )
    digests = {name: digest_file(folder / name) for name in _FILES}
    own = digest(digests)[:32]
    if not (folder / SIDECAR).is_file():
        return ArtifactRef(stage=TRAIN, fingerprint=own, content=own, path=str(folder.absolute()))
    try:
        sidecar = read_json(folder / SIDECAR)
        listed = {name: sidecar["files"].get(name, {}).get("sha256") for name in _FILES}
        stage, content, fingerprint = sidecar["stage"], sidecar["content"], sidecar["fingerprint"]
    except (DataError, AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / SIDECAR} is damaged; train again") from error
    if stage == TRAIN and listed != digests:
        changed = " and ".join(name for name in _FILES if listed[name] != digests[name])
        raise WeightsError(
            f"{changed} of the model in {folder} differs from what {SIDECAR} lists; train again, or remove {SIDECAR} "
            "to use the files as they are"
        )
    return ArtifactRef(stage=stage, fingerprint=fingerprint or own, content=content, path=str(folder.absolute()))


@dataclass(frozen=True, kw_only=True)
class _Match:
    """A model that a text names, and how."""

    folder: Path
    how: str


def _folder(model: Path | str, store: ArtifactStore) -> Path:
    if isinstance(model, Path):
        return model.expanduser()
    trained = [entry for entry in take_inventory(store, TRAIN).entries if entry.state == "finished"]
    matches = {match.folder.resolve(): match for match in _matches(model, trained)}
    if len(matches) == 1:
        return next(iter(matches))
    if matches:
        shown = "; ".join(f"{match.folder} ({match.how})" for match in list(matches.values())[:_SHOWN])
        raise ConfigError(
            f"{model!r} names {len(matches)} models: {shown}. Give the fingerprint or folder of one of them"
        )
    names = sorted({use["recipe"] for entry in trained for use in read_uses(entry.folder)})
    known = f"recipes with a model there: {', '.join(names)}" if names else "it does not contain any model of a recipe"
    raise ConfigError(
        f"{model!r} does not name a trained model: it is not a folder with {CONFIG_FILE} and {MODEL}, and neither the "
        f"fingerprint of a train artifact in {store.root} nor a recipe that trained one; {known}. "
        "Train one with `clip-scgi train RECIPE`"
    )


def _matches(text: str, trained: Iterable[Entry]) -> Iterator[_Match]:
    """Yield the models that `text` names, `trained` being sorted by age."""
    newest: dict[str, Entry] = {}
    for entry in trained:
        if text and f"{TRAIN}/{entry.fingerprint}".startswith((text, f"{TRAIN}/{text}")):
            yield _Match(folder=entry.folder, how=f"trained {entry.created:%Y-%m-%d %H:%M}")
        newest |= {use["dataset"]: entry for use in read_uses(entry.folder) if use["recipe"] == text}
    for dataset, entry in newest.items():
        yield _Match(folder=entry.folder, how=f"recipe {text} on the dataset {dataset}")
    try:
        folder = Path(text).expanduser()
        is_model = bool(text) and any((folder / name).is_file() for name in _FILES)
    except (OSError, RuntimeError, ValueError):  # too long, the home of an unknown user, with a NUL
        return
    if is_model:
        yield _Match(folder=folder, how="a folder")
