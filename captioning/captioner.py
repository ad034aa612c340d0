"""Captioner identity: a fingerprint of everything that can change a caption. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from captioning.chat_form import ChatForm, read_chat_form
from captioning.config import TINY, CaptionConfig
from captioning.framing import FRAMING_VERSION
from captioning.model_folder import READ_FILES, REQUIRED_FILES, check_settings
from data.artifacts.digests import DigestMemo
from data.artifacts.fingerprint import digest
from data.errors import ConfigError, WeightsError

ENGINE_VERSION: Final = 1
"""Raise it whenever the engine would write other captions from the same ingredients."""

SERVER_ENGINE_VERSION: Final = 1
"""The same for the engine that uses a server."""

IMPORTED_ENGINE_VERSION: Final = 1
"""The same for the engine that takes captions from corrections."""

DATASET_ENGINE_VERSION: Final = 1
"""The same for the engine that takes the sentences of the dataset."""

TINY_FOLDER: Final = Path(__file__).parent / "weights" / "tiny_llava"
IMPORTED: Final = "imported"
"""Id of the captioner of engine imported, which writes no text."""
DATASET: Final = "dataset"
"""Id of the captioner of engine dataset, which is whoever wrote the sentences of the dataset."""

_HUB_ID: Final = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """The identity of a captioner.

    fingerprint: 32 hex digits, the key of its caption store. model_id, model_revision: for display; the revision is a
    commit or branch on the hub, the digest of a folder, or the user's label for a server. ingredients: plain JSON, of
    which the fingerprint is the digest.
    """

    fingerprint: str
    model_id: str
    model_revision: str
    ingredients: dict[str, Any]


def local_folder(model: str) -> Path | None:
    """Return the folder that `model` names, or None for a hub id.

    Raises WeightsError if it can only be a folder and does not exist.
    """
    if model == TINY:
        return TINY_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if _HUB_ID.match(model) and not model.startswith((".", "~")):
        return None
    raise WeightsError(
        f"caption.model: folder {folder} does not exist. Put a LLaVA model there ({', '.join(REQUIRED_FILES)}), or "
        f"set a hub id such as caption.model=llava-hf/llava-1.5-7b-hf, or caption.model={TINY} for the embedded model"
    )


def folder_of(config: CaptionConfig) -> Path | None:
    """Return the folder of the model, or None for a hub id. Raises ConfigError for a folder with a revision."""
    folder = local_folder(config.model)
    if folder is not None and config.revision is not None:
        raise ConfigError(
            f"caption.revision={config.revision} applies to hub ids; {folder} is a folder, identified by its content: "
            "set caption.revision=null"
        )
    return folder


def identify(config: CaptionConfig, memo: DigestMemo, form: ChatForm | None = None) -> Captioner:
    """Return the identity of the captioner of `config`; only changed files of a model folder are read.

    form: how a model from the hub is prompted (`captioning.hub.known_form`); None if that is not known here yet.
    """
    if config.engine == "imported":
        return _without_model(IMPORTED, {"engine": [IMPORTED, IMPORTED_ENGINE_VERSION]})
    if config.engine == "dataset":
        return _without_model(DATASET, {"engine": [DATASET, DATASET_ENGINE_VERSION], "sentence": config.sentence})
    model = _on_server(config) if config.engine == "openai" else _local(config, memo, form)
    ingredients = {
        "template": config.prompt_template.digest,
        "max_new_tokens": config.token_limit if config.decoding == "free" else None,
        "regenerate": config.regenerate.identity() if config.regenerate.times else None,
        **model.ingredients,
    }
    return Captioner(
        fingerprint=digest(ingredients)[:32],
        model_id=model.id,
        model_revision=model.revision,
        ingredients=ingredients,
    )


def _without_model(name: str, ingredients: dict[str, Any]) -> Captioner:
    return Captioner(fingerprint=digest(ingredients)[:32], model_id=name, model_revision="", ingredients=ingredients)


class _Model(NamedTuple):
    id: str
    revision: str
    ingredients: dict[str, Any]


def _local(config: CaptionConfig, memo: DigestMemo, form: ChatForm | None) -> _Model:
    """Return the model that runs in this process."""
    folder = folder_of(config)
    if folder is None:
        model_id, revision = config.model, config.revision or "main"
    else:
        model_id = "clip-scgi/tiny-llava" if config.model == TINY else folder.resolve().name
        revision = _folder_digest(folder, memo)
        check_settings(folder, config)
        form = read_chat_form(folder)
    return _Model(
        model_id,
        revision,
        {
            "engine": ENGINE_VERSION,
            # A folder is identified by its content; its name and location do not matter.
            "model": revision if folder is not None else f"{model_id}@{revision}",
            "framing": [config.framing, FRAMING_VERSION],
            "dtype": config.number_format,
            "quantization": config.quantization,
            "decoding": config.decoding,
            **(form.ingredients(config.prompt_template) if form is not None else {}),
            # "all" is left out, so that stores from before this setting are found.
            **({"image_tokens": config.image_tokens} if config.image_tokens != "all" else {}),
        },
    )


def _on_server(config: CaptionConfig) -> _Model:
    """Return the model on a server, whatever its address.

    A server reports only the name of its model: whatever else changes the captions must be part of the revision.
    """
    revision = config.revision or "unpinned"
    return _Model(
        config.model,
        revision,
        {
            "engine": ["openai", SERVER_ENGINE_VERSION],
            "model": f"{config.model}@{revision}",
            "framing": [config.framing, FRAMING_VERSION, config.server.identity()],
        },
    )


def _folder_digest(folder: Path, memo: DigestMemo) -> str:
    names = sorted({path.name for pattern in READ_FILES for path in folder.glob(pattern) if path.is_file()})
    if not names:
        raise WeightsError(f"caption.model: {folder} does not contain a model; expected {', '.join(REQUIRED_FILES)}")
    return digest(memo.digest_folder(folder, names))[:32]
