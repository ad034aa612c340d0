"""Captioner identity: a fingerprint of everything that can change a caption. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from captioning.config import TINY, CaptionConfig
from captioning.framing import FRAMING_VERSION
from captioning.model_folder import WANTED, check_settings
from data.artifacts.digests import DigestMemo
from data.artifacts.fingerprint import digest
from data.errors import ConfigError, WeightsError

ENGINE_VERSION: Final = 1
"""Raised whenever the engine would write other captions from the same ingredients."""

SERVER_ENGINE_VERSION: Final = 1
"""The same for the engine that asks a server."""

TINY_FOLDER: Final = Path(__file__).parent / "weights" / "tiny_llava"
# What transformers reads out of a model folder; a README does not change a caption.
_MODEL_FILES: Final = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
_HUB_ID: Final = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """The identity of a captioner.

    fingerprint: 32 hex digits, the key of its caption store. model_id, model_revision: for people (revision is a commit
    or branch of the hub, the digest of a folder, or what the user says of a server). ingredients: what the fingerprint
    was made of, plain JSON.
    """

    fingerprint: str
    model_id: str
    model_revision: str
    ingredients: dict[str, Any]


def local_folder(model: str) -> Path | None:
    """Return the folder that `model` means, or None for a hub id.

    Raises WeightsError when it can only be a folder and there is none.
    """
    if model == TINY:
        return TINY_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_ID.match(model) and not model.startswith((".", "~")):
        return None
    raise WeightsError(
        f"caption.model: there is no folder {folder}. Put a LLaVA-1.5 model there ({', '.join(WANTED)}), "
        f"or give a hub id such as llava-hf/llava-1.5-7b-hf, or {TINY!r} for the embedded model"
    )


def folder_of(config: CaptionConfig) -> Path | None:
    """Return what `local_folder` returns for the model of `config`; raises ConfigError if a folder has a revision."""
    folder = local_folder(config.model)
    if folder is not None and config.revision is not None:
        raise ConfigError(
            f"caption.revision={config.revision} is for hub ids; {folder} is a folder, whose content is its revision: "
            "leave caption.revision unset"
        )
    return folder


def identify(config: CaptionConfig, memo: DigestMemo) -> Captioner:
    """Return the identity of the captioner that `config` describes; a model folder is read only where it changed."""
    model_id, revision, model = _served(config) if config.engine == "openai" else _local(config, memo)
    ingredients = {
        "template": config.prompt_template.digest,
        "max_new_tokens": config.token_limit if config.decoding == "free" else None,
        "regenerate": config.regenerate.identity() if config.regenerate.times else None,
        **model,
    }
    return Captioner(
        fingerprint=digest(ingredients)[:32], model_id=model_id, model_revision=revision, ingredients=ingredients
    )


def _local(config: CaptionConfig, memo: DigestMemo) -> tuple[str, str, dict[str, Any]]:
    """Return id, revision and ingredients of a model that runs in this process."""
    folder = folder_of(config)
    if folder is None:
        model_id, revision = config.model, config.revision or "main"
    else:
        model_id = "clip-scgi/tiny-llava" if config.model == TINY else folder.resolve().name
        revision = _folder_digest(folder, memo)
        check_settings(folder, config)
    return (
        model_id,
        revision,
        {
            "engine": ENGINE_VERSION,
            # The digest says all about a folder; its name and place do not matter.
            "model": revision if folder is not None else f"{model_id}@{revision}",
            "framing": [config.framing, FRAMING_VERSION],
            "dtype": config.number_format,
            "quantization": config.quantization,
            "decoding": config.decoding,
        },
    )


def _served(config: CaptionConfig) -> tuple[str, str, dict[str, Any]]:
    """Return id, revision and ingredients of a model that a server runs, wherever that is.

    The name is all that a server tells of its model: what else matters to the captions has to be said in the revision.
    """
    revision = config.revision or "unpinned"
    return (
        config.model,
        revision,
        {
            "engine": ["openai", SERVER_ENGINE_VERSION],
            "model": f"{config.model}@{revision}",
            "framing": [config.framing, FRAMING_VERSION, config.server.identity()],
        },
    )


def _folder_digest(folder: Path, memo: DigestMemo) -> str:
    names = sorted({path.name for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    if not names:
        raise WeightsError(f"{folder} holds no model; wanted there: {', '.join(WANTED)}")
    return digest(memo.digest_folder(folder, names))[:32]
