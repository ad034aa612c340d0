"""Find the weights files of a backbone. Imports no torch: stages call this to compute fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from data.errors import WeightsError
from data.weights import INDEX
from reid.clip_files.pickles import PICKLES, pickle_remedy
from reid.config.backbone import OPENAI, RANDOM, SHIPPED, BackboneConfig
from reid.models.file_configs import OPEN_CLIP_CONFIG

TINY_FOLDER: Final = Path(__file__).parents[1] / "weights" / "tiny_clip"
TINY_WEIGHTS: Final = "model.safetensors"
TINY_CONFIG: Final = "config.json"
TINY_TOKENIZER: Final = "tokenizer.json"

# open_clip's safetensors of OpenAI's models. The original .pt files are pickles and are never read.
HUB_FILE: Final = "open_clip_model.safetensors"
HUB_REPOSITORIES: Final = {
    "vit_b16": "timm/vit_base_patch16_clip_224.openai",
    "rn50": "timm/resnet50_clip.openai",
}


_HUB_SECONDS: Final = 5.0


def weights_file(config: BackboneConfig) -> Path | None:
    """Return the file of the backbone's weights, or None for random weights.

    Raises WeightsError with the missing file and its place if it is not here and cannot be downloaded.
    """
    if config.weights == RANDOM:
        return None
    if config.weights == SHIPPED:
        return _existing(TINY_FOLDER / TINY_WEIGHTS, "it is part of this package: install the package again")
    if config.weights == OPENAI:
        return _from_hub(config.name)
    return _own_file(Path(config.weights).expanduser())


def weights_files(config: BackboneConfig) -> list[Path]:
    """Return every file that a backbone depends on: its weights and, for the tiny CLIP, config and tokenizer."""
    weights = weights_file(config)
    files = [] if weights is None else [weights]
    if config.name == "tiny":
        files += [TINY_FOLDER / TINY_CONFIG, TINY_FOLDER / TINY_TOKENIZER]
    return files


def _own_file(path: Path) -> Path:
    """Return the weights file at the user's `path`, a file or a folder."""
    if not path.is_dir():
        if path.suffix in PICKLES:
            raise WeightsError(pickle_remedy(path))
        return _existing(
            path, "train.backbone.weights must be shipped, openai, or name a .safetensors file or a folder with one"
        )
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found and (path / INDEX).exists():
        raise WeightsError(
            f"{path} contains a CLIP in shards ({INDEX}), which are not read here: save it in one file with "
            "transformers, save_pretrained(folder, max_shard_size='100GB'), and set train.backbone.weights to that file"
        )
    if found:
        names = ", ".join(file.name for file in found)
        raise WeightsError(
            f"{path} contains several weights files ({names}): set train.backbone.weights to one of them"
        )
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise WeightsError(f"{path} contains no .safetensors file. {pickle_remedy(pickles[0])}")
    raise WeightsError(f"{path} contains no .safetensors file: set train.backbone.weights to the file or to its folder")


def _existing(path: Path, remedy: str) -> Path:
    if not path.is_file():
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise WeightsError(f"{path} {what}: {remedy}")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = HUB_REPOSITORIES[name]
    try:
        return Path(hf_hub_download(repository, HUB_FILE, local_files_only=True))
    except LocalEntryNotFoundError:
        pass  # not in the local cache: try the hub
    try:
        # Ask for the model first: a download retries an unreachable hub for half a minute.
        HfApi().model_info(repository, timeout=_HUB_SECONDS)
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # of the hub, its HTTP client or the disk: in every case there is no file
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no details').splitlines()[0]}"
        raise WeightsError(
            f"train.backbone.weights=openai needs {HUB_FILE} of {repository}: it is not in the hub cache of this "
            f"machine and the hub cannot be reached ({reason}). "
            f"Where it can be reached, run `hf download {repository} {HUB_FILE}`; or copy the file and the "
            f"{OPEN_CLIP_CONFIG} beside it into a folder of this machine and set train.backbone.weights to that folder"
        ) from error
