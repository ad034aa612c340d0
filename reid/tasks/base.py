"""What is trained: a task joins a model and its losses, so that the loop names neither.

A task is called with a batch and returns named loss terms; `weights` says how they add up. Each process computes its
own images' features; `gather` puts the features of all processes together before anything looks across images, so
losses (and batch norms) see the global batch whatever the number of processes.

Shapes: B images of this process, G images of the global batch, C channels, D joint width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from data.errors import DataError
from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.models.backbone import Backbone, ImageFeatures


class Encoder(Protocol):
    """Normalised images [B, 3, H, W] -> retrieval features [B, D'], not yet of unit length, batch-independent."""

    def __call__(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
        """Encode. `cameras_B` (see Task.camera_numbers) is needed if the task uses a camera embedding."""


Gather = Callable[[Tensor], Tensor]
"""[B, ...] of this process -> [G, ...] of all processes in batch order, with gradients."""

MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.5, 0.5, 0.5)
"""Of pixels scaled to 0..1; CLIP-ReID's, not CLIP's."""
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""What CLIP-ReID gives its ResNet (configs/person/cnn_clipreid.yml)."""


def no_gather(x: Tensor) -> Tensor:
    """The gather of a single process."""
    return x


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How pixels become input: size in pixels, mean and deviation per channel of pixels in 0..1."""

    height: int
    width: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def preprocess_of(config: BackboneConfig) -> Preprocess:
    """Return what a backbone wants to see, as CLIP-ReID has it."""
    if config.name == "rn50":
        return Preprocess(height=config.height, width=config.width, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Preprocess(height=config.height, width=config.width)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images of one process, on its device."""

    images_BCHW: Tensor
    """float32, normalised and augmented."""
    labels_B: Tensor
    """Identity as a class number."""
    items_B: Tensor
    """Number of the image in the training set."""
    cameras_B: Tensor | None = None
    """Camera as a number, for tasks with a camera embedding."""
    captions_BD: Tensor | None = None
    """CLIP's text feature of each image's caption, for methods that read captions."""


class Task(nn.Module, ABC):
    """A method: features at test time, named loss terms in training."""

    weights: Mapping[str, float]
    """Name of a loss term -> its weight in the total."""
    camera_ids_K: Tensor
    """Data set cameras that have an embedding, in its order."""

    def __init__(self, backbone: Backbone, config: TrainConfig, *, cameras: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.freeze_text()
        self.preprocess = preprocess_of(config.backbone)
        self.sie = config.sie
        if self.sie:
            self.register_buffer("camera_ids_K", torch.tensor(cameras, dtype=torch.long))
            self.camera_shift_KV = nn.Parameter(torch.empty(len(cameras), backbone.last_width))
            nn.init.trunc_normal_(self.camera_shift_KV, std=0.02)

    def encode_image(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ImageFeatures:
        """Return the image features, with the camera embedding (SIE) if there is one."""
        if not self.sie:
            return self.backbone.image(images_BCHW)
        if cameras_B is None:
            raise ValueError("this task has a camera embedding: pass the cameras of the images")
        return self.backbone.image(images_BCHW, self.sie * self.camera_shift_KV[cameras_B])

    def camera_numbers(self, camids: Sequence[int]) -> Tensor | None:
        """Return the camera numbers [N] that encoders want for data set cameras `camids`, None if they want none.

        Raises DataError for a camera that training has not seen: it has no embedding.
        """
        if not self.sie:
            return None
        number = {camid: position for position, camid in enumerate(self.camera_ids_K.tolist())}
        unknown = sorted(set(camids) - set(number))
        if unknown:
            raise DataError(
                f"the model has an embedding for each of the cameras {sorted(number)} and none for {unknown}; "
                "train with train.sie=0 to search across other cameras"
            )
        return torch.tensor([number[camid] for camid in camids])

    @abstractmethod
    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the loss terms (scalars, unweighted) over the global batch."""

    @abstractmethod
    def encoders(self) -> dict[str, Encoder]:
        """Return inference mode -> encoder. The first is the default."""

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of `terms`."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
