"""How to read a backbone's weights file, decided by its header and its config. Imports no torch.

The decisions (activation, grid of the positions) are part of every fingerprint that depends on the weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from data.errors import WeightsError
from data.weights import StoredTensor, is_pickle, read_tensors
from reid.clip_files.grids import Grid, grid_of
from reid.clip_files.names import (
    OPENAI_SCALARS,
    POOL_POSITIONS,
    POSITIONS,
    Architecture,
    Layout,
    architecture,
    layout_of,
)
from reid.clip_files.pickles import pickle_remedy
from reid.config.backbone import RANDOM, Activation, BackboneConfig
from reid.models.file_configs import OPEN_CLIP_CONFIG, FileConfig, config_beside
from reid.models.pretrained import weights_file

ARCHITECTURES: Final = {
    "tiny": Architecture(
        vision_width=192, patch=16, vision_blocks=(5,), text_width=128, text_blocks=2, joint_width=128
    ),
    "vit_b16": Architecture(
        vision_width=768, patch=16, vision_blocks=(12,), text_width=512, text_blocks=12, joint_width=512
    ),
    "rn50": Architecture(
        vision_width=64, patch=None, vision_blocks=(3, 4, 6, 3), text_width=512, text_blocks=12, joint_width=1024
    ),
}


@dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """A weights file and how to read it.

    activation, grid: those the weights were trained with. decided_by: where the activation comes from. config: the
    config beside the file, None without one. left_out: parts of a train artifact besides CLIP, name -> number of
    tensors.
    """

    path: Path
    layout: Layout
    activation: Activation
    grid: Grid
    decided_by: str
    config: FileConfig | None
    left_out: dict[str, int]


class SourceIdentity(TypedDict, total=False):
    """What identifies a loaded backbone besides the content of its files; absent keys have the published value."""

    activation: str
    grid: list[int]


class SourceRecord(TypedDict):
    """How weights were read, in the provenance of a model; random weights have an activation only.

    activation_from: where the activation comes from. names: the naming of the file. left_out: parts of a train artifact
    besides CLIP -> number of tensors.
    """

    activation: Activation
    activation_from: NotRequired[str]
    grid: NotRequired[list[int]]
    names: NotRequired[str]
    left_out: NotRequired[dict[str, int]]


def read_source(config: BackboneConfig) -> WeightsSource | None:
    """Return how to read the weights file of `config`, from its header and its config; None for random weights.

    Raises WeightsError if the file is missing or is not a CLIP, if its activation or grid is unknown, or if its config
    contradicts the settings.
    """
    path = weights_file(config)
    if path is None:
        return None
    tensors = _read_header(path)
    layout = layout_of(tensors, str(path))
    _refuse_other_architecture(
        config, path, architecture({name: value.shape for name, value in tensors.items()}, layout)
    )
    beside = config_beside(path, layout) if config.is_file else None
    activation, decided_by = _activation(config, path, beside, tensors, layout)
    return WeightsSource(
        path=path,
        layout=layout,
        activation=activation,
        grid=_grid(config, path, beside, tensors, layout),
        decided_by=decided_by,
        config=beside,
        left_out=dict(Counter(name.split(".")[0] for name in sorted(tensors) if layout.is_left_out(name))),
    )


def activation_of(config: BackboneConfig, source: WeightsSource | None) -> Activation:
    """Return the activation of a backbone of `config`; `source` is what `read_source` returns for it."""
    if source is not None:
        return source.activation
    return config.own_activation if config.activation == "auto" else config.activation


def resolved(config: BackboneConfig) -> BackboneConfig:
    """Return `config` with the activation of its weights file; without a file, `config` itself."""
    if not config.is_file:
        return config
    return config.model_copy(update={"activation": activation_of(config, read_source(config))})


def source_identity(config: BackboneConfig) -> SourceIdentity:
    """Return what identifies the loaded backbone besides the content of its files; empty if nothing else does."""
    source = read_source(config)
    if config.is_file:
        assert source is not None
        return {"activation": source.activation, "grid": list(source.grid)}
    return {} if activation_of(config, source) == config.own_activation else {"activation": config.activation}


def described(config: BackboneConfig) -> SourceRecord:
    """Return how the weights were read, for the provenance of a trained model."""
    source = read_source(config)
    activation = activation_of(config, source)
    if source is None:
        return {"activation": activation}
    return {
        "activation": activation,
        "activation_from": source.decided_by,
        "grid": list(source.grid),
        "names": "train artifact" if source.layout.is_artifact else source.layout.naming,
        "left_out": source.left_out,
    }


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Return what the header of a weights file lists; raises WeightsError if the file is something else."""
    if path.is_file() and is_pickle(path):
        raise WeightsError(pickle_remedy(path))
    return read_tensors(path)


def _activation(
    config: BackboneConfig, path: Path, beside: FileConfig | None, tensors: dict[str, StoredTensor], layout: Layout
) -> tuple[Activation, str]:
    """Return the activation of a weights file, and where it comes from."""
    if not config.is_file:
        return config.own_activation, f"weights={config.weights}"
    stated = None if config.activation == "auto" else config.activation
    if beside is not None:
        if stated not in (None, beside.activation):
            raise WeightsError(
                f"train.backbone.activation={stated}, but {beside.path} says {beside.activation}: set "
                "train.backbone.activation=auto, or correct that file"
            )
        return beside.activation, beside.path.name
    if stated is not None:
        return stated, "train.backbone.activation"
    if config.name == "tiny":
        return config.own_activation, "the tiny CLIP's config"
    if all(layout.prefix + name in tensors for name in OPENAI_SCALARS):
        return "quick_gelu", "the scalars of OpenAI's archives"
    raise WeightsError(
        f"{path} does not say which activation it was trained with, and the wrong one changes every feature: put its "
        f"{OPEN_CLIP_CONFIG} (or Hugging Face's config.json) beside it, or set train.backbone.activation=quick_gelu "
        "(OpenAI's weights and what was fine-tuned from them) or train.backbone.activation=gelu (LAION's and most "
        "others of open_clip)"
    )


def _grid(
    config: BackboneConfig, path: Path, beside: FileConfig | None, tensors: dict[str, StoredTensor], layout: Layout
) -> Grid:
    """Return the grid of a file's positions: from its config, the setting, or their number."""
    stored = next(
        (tensors[name] for key in (POSITIONS, POOL_POSITIONS) if (name := layout.sources(key)[0]) in tensors), None
    )
    if stored is None or len(stored.shape) != 2:
        return config.grid  # loading reports the tensor as missing or of another shape
    count = stored.shape[0] - 1
    from_file = _grid_beside(beside, count)
    if beside is not None and from_file is not None and config.source_grid not in (None, from_file):
        raise WeightsError(
            f"train.backbone.source_grid={_shown(config.source_grid)}, but the image size in {beside.path} makes a "
            f"grid of {_shown(from_file)}: unset train.backbone.source_grid, or correct that file"
        )
    published = _published(config)
    known = config.source_grid or from_file or (None if config.is_file else published)
    try:
        return grid_of(count, config.grid, given=known, published=(published,))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _grid_beside(beside: FileConfig | None, count: int) -> Grid | None:
    """Return the grid of the config beside a file, if the file has that many positions.

    A file that was fine-tuned at another size often keeps its original config, which is then ignored.
    """
    if beside is None or beside.grid is None or prod(beside.grid) != count:
        return None
    return beside.grid


def _shown(grid: Grid | None) -> str:
    return str(list(grid or ())).replace(" ", "")


def _published(config: BackboneConfig) -> Grid:
    """Return the published grid of this architecture."""
    grids: dict[str, Grid] = {"tiny": BackboneConfig(weights=RANDOM).grid, "vit_b16": (14, 14), "rn50": (7, 7)}
    return grids[config.name]


def _refuse_other_architecture(config: BackboneConfig, path: Path, found: Architecture) -> None:
    """Raise WeightsError for a file that is clearly of another architecture.

    A single difference may be one wrong tensor, which loading reports by name.
    """
    if len(found.differences(ARCHITECTURES[config.name])) < 2:
        return
    fits = [name for name, known in ARCHITECTURES.items() if not found.differences(known)]
    remedy = f"set train.backbone.name={fits[0]}" if fits else f"supported are {', '.join(ARCHITECTURES)}"
    raise WeightsError(
        f"{path} contains {found}; train.backbone.name={config.name} is {ARCHITECTURES[config.name]}: {remedy}"
    )
