"""Where the weights of a backbone are. Imports nothing heavy: stages call it to fingerprint the file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from data.errors import WeightsError
from reid.config import OPENAI, RANDOM, SHIPPED, BackboneConfig

TINY_FOLDER: Final = Path(__file__).parent / "weights" / "tiny_clip"
TINY_WEIGHTS: Final = "model.safetensors"
TINY_CONFIG: Final = "config.json"
TINY_TOKENIZER: Final = "tokenizer.json"

# open_clip's own safetensors of OpenAI's models; the .pt originals are pickles and are never read.
HUB_FILE: Final = "open_clip_model.safetensors"
HUB_REPOSITORIES: Final = {
    "vit_b16": "timm/vit_base_patch16_clip_224.openai",
    "rn50": "timm/resnet50_clip.openai",
}


def weights_file(config: BackboneConfig) -> Path | None:
    """Return the file that holds the backbone's weights, or None for random weights.

    Raises WeightsError, naming the file and where it is wanted, when it is neither here nor to be had.
    """
    if config.weights == RANDOM:
        return None
    if config.weights == SHIPPED:
        return _existing(TINY_FOLDER / TINY_WEIGHTS, "it is part of this package: install it again")
    if config.weights == OPENAI:
        return _from_hub(config.name)
    return _existing(Path(config.weights).expanduser(), "backbone.weights must name an existing .safetensors file")


def weights_files(config: BackboneConfig) -> list[Path]:
    """Return every file a backbone's behaviour depends on: weights and, for the tiny CLIP, shape and tokenizer."""
    weights = weights_file(config)
    files = [] if weights is None else [weights]
    if config.name == "tiny":
        files += [TINY_FOLDER / TINY_CONFIG, TINY_FOLDER / TINY_TOKENIZER]
    return files


def _existing(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: {remedy}")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository = HUB_REPOSITORIES[name]
    try:
        return Path(hf_hub_download(repository, HUB_FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the local cache: ask the hub
    try:
        return Path(hf_hub_download(repository, HUB_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise WeightsError(
            f"the {name} backbone wants {HUB_FILE} of {repository}: it is not in the local hub cache and the hub "
            f"cannot be reached ({type(error).__name__}). Copy the file to this machine and set backbone.weights to "
            "its path, or put it into the hub cache"
        ) from error
