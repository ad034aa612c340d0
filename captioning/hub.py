"""Models on the Hugging Face hub: the commit that a name refers to, the folder that holds it, and its chat template.

A branch moves, so the caption stage resolves it once and then uses only the commit: it enters the fingerprint, it is
loaded, and the captions record it. Imports nothing heavy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from captioning.captioner import folder_of
from captioning.chat_form import ChatForm, read_chat_form
from captioning.config import CaptionConfig
from captioning.model_folder import READ_FILES, REQUIRED_FILES, missing_files
from data.errors import WeightsError
from data.files import read_json, write_json

_COMMIT: Final = re.compile(r"^[0-9a-f]{40}$")
_TIMEOUT: Final = 5.0
_MEMORY: Final = Path("captions", "hub.json")
_FORMS: Final = Path("captions", "chat_forms.json")


def pin_offline(config: CaptionConfig, root: Path) -> CaptionConfig:
    """Return `config` with its hub id pinned to the commit that this machine knows; never uses the network.

    The commit comes from the hub cache or, if the weights were deleted, from the last run that captioned with this name
    into the artifact store under `root`. Returns `config` unchanged if neither knows it or the model is not a hub id.
    """
    if not _moves(config):
        return config
    cached = cached_snapshot(config.model, config.revision)
    commit = cached.name if cached is not None else _remembered(root).get(_name(config))
    return config if commit is None else config.model_copy(update={"revision": commit})


def pin_or_fetch(config: CaptionConfig, root: Path) -> CaptionConfig:
    """Return `config` with its hub id pinned to a commit; download the model if the commit or its prompt is unknown.

    Records both in the artifact store under `root`. Raises WeightsError if the model cannot be downloaded.
    """
    if not _on_hub(config):
        return config
    found = pin_offline(config, root)
    if _moves(found) or known_form(found, root) is None:
        folder = fetch_snapshot(config.model, found.revision)
        found = found.model_copy(update={"revision": folder.name if _moves(found) else found.revision})
        if found == config and known_form(found, root) is None:
            return config  # not a LLaVA, which loading refuses
    _record(config, found, root)
    return found


def _record(config: CaptionConfig, found: CaptionConfig, root: Path) -> None:
    """Record the commit and the chat form of the hub model `config`, pinned as `found`."""
    if _moves(config) and _remembered(root).get(_name(config)) != found.revision:
        write_json(root / _MEMORY, _remembered(root) | {_name(config): found.revision})
    form, forms = known_form(found, root), _forms(root)
    if form is not None and _name(found) not in forms:
        write_json(root / _FORMS, forms | {_name(found): form.model_dump(mode="json")})


def known_form(config: CaptionConfig, root: Path) -> ChatForm | None:
    """Return how the hub model of `config` is prompted; never uses the network.

    It is read from the hub cache or, if the weights were deleted, from what the artifact store under `root` recorded.
    None if neither knows it, or if the model is not a hub id.
    """
    if not _on_hub(config):
        return None
    cached = cached_snapshot(config.model, config.revision)
    form = read_chat_form(cached) if cached is not None and not missing_files(cached) else None
    recorded = _forms(root).get(_name(config))
    return form if form is not None or recorded is None else ChatForm.model_validate(recorded)


def _forms(root: Path) -> dict[str, Any]:
    """Return name and commit -> the chat form that this artifact store recorded."""
    path = root / _FORMS
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    return known


def _on_hub(config: CaptionConfig) -> bool:
    return config.engine == "transformers" and folder_of(config) is None


def _moves(config: CaptionConfig) -> bool:
    """Return True for a hub id whose revision is a branch or tag, which may refer to another commit tomorrow."""
    return _on_hub(config) and (config.revision is None or _COMMIT.match(config.revision) is None)


def _name(config: CaptionConfig) -> str:
    return f"{config.model}@{config.revision or 'main'}"


def _remembered(root: Path) -> dict[str, str]:
    """Return name -> commit that this artifact store was last captioned with."""
    path = root / _MEMORY
    known: dict[str, str] = read_json(path) if path.is_file() else {}
    return known


def cached_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder of `revision` (None: main) of `model` in this machine's hub cache, or None.

    The folder's name is the commit. Files may be missing if a download was interrupted.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def fetch_snapshot(model: str, revision: str | None) -> Path:
    """Return the folder of a hub id: from this machine's cache if complete, otherwise downloaded.

    Raises WeightsError with the remedy if neither works.
    """
    from huggingface_hub import snapshot_download

    cached = cached_snapshot(model, revision)
    if cached is not None and not missing_files(cached):
        return cached
    try:
        found = snapshot_download(model, revision=revision, allow_patterns=list(READ_FILES), etag_timeout=_TIMEOUT)
    except Exception as error:  # from the hub, its HTTP library or the disk; each means that there is no model
        raise _unavailable(model, revision, f"{type(error).__name__}: {first_line(error)}") from error
    folder = Path(found)
    missing = missing_files(folder)  # offline, the hub returns what an interrupted download left
    if missing:
        raise _unavailable(model, revision, f"{folder} lacks {', '.join(missing)}")
    return folder


def check_available(model: str, revision: str | None) -> None:
    """Raise WeightsError unless the hub id is complete in this machine's cache or exists on the hub.

    Downloads nothing.
    """
    from huggingface_hub import HfApi

    cached = cached_snapshot(model, revision)
    if cached is not None and not missing_files(cached):
        return
    try:
        HfApi().model_info(model, revision=revision, timeout=_TIMEOUT)
    except Exception as error:  # from the hub or its HTTP library, as in `fetch_snapshot`
        raise _unavailable(model, revision, f"{type(error).__name__}: {first_line(error)}") from error


def _unavailable(model: str, revision: str | None, reason: str) -> WeightsError:
    command = f"hf download {model}" + (f" --revision {revision}" if revision is not None else "")
    return WeightsError(
        f"caption.model: the weights of {model} (revision {revision or 'main'}) are not in this machine's hub cache "
        f"and cannot be downloaded ({reason}). Run `{command}` where the hub can be reached; or put "
        f"{', '.join(REQUIRED_FILES)} into a folder and set caption.model to it; or set caption.model=tiny for the "
        "embedded model"
    )


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
