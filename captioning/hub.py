"""Models of the Hugging Face hub: which commit a name means, and the folder that holds it. Imports nothing heavy.

A branch moves, so the commit is looked up once per stage and used from then on: it is what the captions record.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from captioning.model_folder import WANTED, missing_files
from data.errors import WeightsError

_COMMIT: Final = re.compile(r"^[0-9a-f]{40}$")
_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_TIMEOUT: Final = 5.0


def is_commit(revision: str | None) -> bool:
    """Return True if `revision` is a full commit hash, which always means the same files."""
    return revision is not None and _COMMIT.match(revision) is not None


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
        return Path(snapshot_download(model, etag_timeout=_TIMEOUT, **options))
    except Exception as error:  # of the hub, its HTTP library or the disk: none of them leaves a model
        raise WeightsError(
            f"the weights of {model} (revision {revision or 'main'}) are neither in the hub cache of this machine nor "
            f"can they be fetched ({type(error).__name__}: {first_line(error)}). Where the hub can be reached, run "
            f"`hf download {model}`; or put {', '.join(WANTED)} into a folder and set caption.model to it; or set "
            "caption.model to tiny, the embedded model"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
