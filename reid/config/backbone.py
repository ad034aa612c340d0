"""Config of the backbone: which CLIP, from which weights, at which input size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from data.config import Config
from data.errors import raise_settings
from reid.clip_files.grids import Grid, patch_grid
from reid.clip_files.pickles import PICKLES, pickle_remedy
from reid.config.numbers import Size

Activation = Literal["quick_gelu", "gelu"]

PATCH: Final = 16
"""Pixels per side of a patch, or of a position of the ResNet, in every backbone."""

SHIPPED = "shipped"
OPENAI = "openai"
RANDOM = "random"


class BackboneConfig(Config):
    """Which CLIP, from which weights, at which input size."""

    name: Literal["tiny", "vit_b16", "rn50"] = "tiny"
    """Architecture: the embedded tiny CLIP, or CLIP's ViT-B/16 or ResNet-50."""
    weights: str = SHIPPED
    """"shipped" (tiny only), "openai" (vit_b16 and rn50, from the local hub cache or the hub), "random" (tests and
    benchmarks), or a path: a .safetensors file with open_clip's or Hugging Face's names, a folder with one such file,
    or a train artifact of this project, whose CLIP is trained further."""
    activation: Literal["auto", "quick_gelu", "gelu"] = "auto"
    """Activation that the weights were trained with. "auto" reads it from the config beside the file
    (open_clip_config.json, config.json). OpenAI's weights need quick_gelu, most other open_clip weights gelu."""
    source_grid: tuple[Size, Size] | None = None
    """Rows and columns of the position embeddings in a weights file, if their number fits several grids; a model for
    256 x 128 pixels has [16, 8]."""
    height: Size = 128
    """Input height, pixels. Published: 256."""
    width: Size = 64
    """Input width, pixels. Published: 128."""
    stride: Annotated[int, Field(ge=0)] = 0
    """Step between patches, pixels; 0 means the patch size. CLIP-ReID's overlapping patches (OLP) use 12."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result.

        A weights file appears only as "file": its digest, activation and grid are in `weights_identity`.
        """
        fields = {**super().identity(), "weights": "file" if self.is_file else self.weights}
        return {name: value for name, value in fields.items() if name not in ("activation", "source_grid")}

    @property
    def is_file(self) -> bool:
        """Whether the weights are a file or folder of the user."""
        return self.weights not in (SHIPPED, OPENAI, RANDOM)

    @property
    def own_activation(self) -> Activation:
        """The activation that the architecture was published with."""
        return "gelu" if self.name == "tiny" else "quick_gelu"

    @property
    def grid(self) -> Grid:
        """Rows and columns of the image tower's positions at this input size."""
        if self.name == "rn50":
            return self.height // PATCH, self.width // PATCH  # stage 4 keeps its resolution, as in CLIP-ReID
        return patch_grid((self.height, self.width), PATCH, self.stride)

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        raise_settings([*self._weights_problems(), *self._file_setting_problems(), *self._size_problems()])
        return self

    def _weights_problems(self) -> Iterator[tuple[str, str]]:
        path = Path(self.weights)
        if self.name == "tiny" and self.weights == OPENAI:
            yield "weights", "openai has no weights for the tiny CLIP; set {at}weights=shipped"
        if self.name != "tiny" and self.weights == SHIPPED:
            message = "set {at}weights=openai or the path of a .safetensors file"
            yield "weights", f"no weights are shipped for {self.name}; {message}"
        if path.suffix in PICKLES:
            yield "weights", pickle_remedy(path)
        elif self.is_file and path.suffix != ".safetensors" and "/" not in self.weights:
            message = f"must be shipped, openai, random, a .safetensors file or a folder, not {self.weights}"
            yield "weights", f"{message} (for a folder set {{at}}weights=./{self.weights})"

    def _file_setting_problems(self) -> Iterator[tuple[str, str]]:
        if self.weights in (SHIPPED, OPENAI) and self.activation not in ("auto", self.own_activation):
            message = f"weights={self.weights} were trained with {self.own_activation}"
            yield "activation", f"{message}; set {{at}}activation=auto"
        if self.source_grid is not None and not self.is_file:
            yield "source_grid", "describes a weights file of your own; set {at}source_grid=null"

    def _size_problems(self) -> Iterator[tuple[str, str]]:
        if self.name == "rn50" and self.stride:
            yield "stride", "overlapping patches need a vision transformer; set {at}stride=0 for rn50"
        for side, length in (("height", self.height), ("width", self.width)):
            if length < PATCH:
                yield side, f"{length} pixels are less than a patch; set {{at}}{side} to at least {PATCH}"
