"""Models of the Hugging Face hub: which commit a name means, and the folder that holds it. Imports nothing heavy.

A branch moves, so the stage looks its commit up once and then uses nothing else: it is in the fingerprint, it is what
is loaded, and it is what the captions record.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from captioning.captioner import folder_of
from captioning.config import CaptionConfig
from captioning.model_folder import WANTED, missing_files
from data.errors import WeightsError
from data.files import read_json, write_json

_COMMIT: Final = re.compile(r"^[0-9a-f]{40}$")
_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_TIMEOUT: Final = 5.0
_MEMORY: Final = Path("captions", "hub.json")


def pinned(config: CaptionConfig, root: Path) -> CaptionConfig:
    """Return `config` with the commit that its hub id means on this machine; asks no server.

    The hub cache says it, or else, where the weights are gone, what the name meant when it last captioned into the
    artifact store under `root`. Unchanged if neither knows, and for anything but a hub id.
    """
    if not _moves(config):
        return config
    cached = cached_snapshot(config.model, config.revision)
    commit = cached.name if cached is not None else _remembered(root).get(_name(config))
    return config if commit is None else config.model_copy(update={"revision": commit})


def settled(config: CaptionConfig, root: Path) -> CaptionConfig:
    """Return `config` with the commit that its hub id means, fetching the model if that is not known here yet.

    Remembers the commit in the artifact store under `root`. Raises WeightsError if it cannot be fetched.
    """
    found = pinned(config, root)
    if _moves(found):
        found = config.model_copy(update={"revision": snapshot(config.model, config.revision).name})
    if found is not config and _remembered(root).get(_name(config)) != found.revision:
        write_json(root / _MEMORY, _remembered(root) | {_name(config): found.revision})
    return found


def _moves(config: CaptionConfig) -> bool:
    """Return True for a hub id whose revision is a branch or tag, which may mean another commit tomorrow."""
    if config.engine != "transformers" or folder_of(config) is not None:
        return False
    return config.revision is None or _COMMIT.match(config.revision) is None


def _name(config: CaptionConfig) -> str:
    return f"{config.model}@{config.revision or 'main'}"


def _remembered(root: Path) -> dict[str, str]:
    """Return name -> commit of what this store was captioned with."""
    path = root / _MEMORY
    known: dict[str, str] = read_json(path) if path.is_file() else {}
    return known


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder in this machine's hub cache that `revision` (None: main) of `model` means, or None.

    Its name is the commit. Files may be missing where a download was interrupted.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def snapshot(model: str, revision: str | None) -> Path:
    """Return the folder of a hub id: from this machine's cache where it is whole, else fetched from the hub.

    Raises WeightsError, with what to do, if it is in neither.
    """
    from huggingface_hub import snapshot_download

    cached = cached_snapshot(model, revision)
    if cached is not None and not missing_files(cached):
        return cached
    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(_FILES)}
    try:
        folder = Path(snapshot_download(model, etag_timeout=_TIMEOUT, **options))
    except Exception as error:  # of the hub, its HTTP library or the disk: none of them leaves a model
        raise _out_of_reach(model, revision, f"{type(error).__name__}: {first_line(error)}") from error
    missing = missing_files(folder)  # an offline hub returns what an interrupted download has left
    if missing:
        raise _out_of_reach(model, revision, f"{folder} lacks {', '.join(missing)}")
    return folder


def check_reach(model: str, revision: str | None) -> None:
    """Raise WeightsError unless this machine's cache holds the whole hub id or the hub has it; fetches nothing."""
    from huggingface_hub import HfApi

    cached = cached_snapshot(model, revision)
    if cached is not None and not missing_files(cached):
        return
    try:
        HfApi().model_info(model, revision=revision, timeout=_TIMEOUT)
    except Exception as error:  # of the hub or its HTTP library, as in `snapshot`
        raise _out_of_reach(model, revision, f"{type(error).__name__}: {first_line(error)}") from error


def _out_of_reach(model: str, revision: str | None, reason: str) -> WeightsError:
    command = f"hf download {model}" + (f" --revision {revision}" if revision is not None else "")
    return WeightsError(
        f"the weights of {model} (revision {revision or 'main'}) are neither in the hub cache of this machine nor "
        f"can they be fetched ({reason}). Where the hub can be reached, run `{command}`; or put "
        f"{', '.join(WANTED)} into a folder and set caption.model to it; or set caption.model to tiny, the embedded "
        "model"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
