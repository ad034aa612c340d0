"""Task, the base of every method: a model with its losses, so that the training loop depends on neither.

A task maps a batch to named loss terms; `weights` gives the weight of each. A process computes the features of its own
images. `gather` joins the features of all processes before a loss or a batch norm compares images, so these see the
global batch, whatever the number of processes.

Shapes: B images of this process, G images of the global batch, C channels, V vision width, D joint width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from data.errors import DataError
from reid.config.backbone import BackboneConfig
from reid.config.evaluate import JOINT
from reid.config.train import TrainConfig
from reid.models.backbone import Backbone, ImageFeatures
from reid.models.heads import RetrievalHead


class Encoder(Protocol):
    """Normalized images [B, 3, H, W] -> retrieval features [B, D'], not yet of unit length, batch-independent."""

    def __call__(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
        """Return the features. `cameras_B` (`Task.camera_numbers`) is needed if the task has a camera embedding."""


Readout = Callable[[ImageFeatures], Tensor]
"""Features of the image tower -> retrieval features [B, D'] of one inference mode."""
Gather = Callable[[Tensor], Tensor]
"""[B, ...] of this process -> [G, ...] of all processes in batch order, with gradients."""

MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.5, 0.5, 0.5)
"""Mean and deviation of pixels in 0..1. These are CLIP-ReID's, not CLIP's."""
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""CLIP-ReID's values for its ResNet (configs/person/cnn_clipreid.yml)."""


def no_gather(x: Tensor) -> Tensor:
    """Return `x`: the gather of a single process."""
    return x


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Preprocessing of images: size in pixels, and mean and deviation per channel of pixels in 0..1."""

    height: int
    width: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def preprocess_of(config: BackboneConfig) -> Preprocess:
    """Return CLIP-ReID's preprocessing for a backbone."""
    if config.name == "rn50":
        return Preprocess(height=config.height, width=config.width, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Preprocess(height=config.height, width=config.width)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images of one process, on its device."""

    images_BCHW: Tensor
    """float32, normalized and augmented."""
    labels_B: Tensor
    """Class number of each image's identity."""
    items_B: Tensor
    """Number of each image in the training set."""
    cameras_B: Tensor | None = None
    """Number of each camera, for tasks with a camera embedding."""
    captions_BD: Tensor | None = None
    """CLIP's text feature of each image's caption, for methods that read captions."""


class Task(nn.Module, ABC):
    """A method: named loss terms for training, and encoders for inference."""

    weights: Mapping[str, float]
    """Loss term -> weight in the total."""
    camera_ids_K: Tensor
    """Cameras of the dataset that have an embedding, in the order of the embeddings."""

    def __init__(self, backbone: Backbone, config: TrainConfig, *, cameras: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.freeze_text()
        self.preprocess = preprocess_of(config.backbone)
        self.retrieval = RetrievalHead(backbone, seed=config.seed) if config.retrieval_head == "separate" else None
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
            raise ValueError("this task has a camera embedding: pass cameras_B (Task.camera_numbers)")
        return self.backbone.image(images_BCHW, self.sie * self.camera_shift_KV[cameras_B])

    def retrieval_feature(self, features: ImageFeatures) -> Tensor:
        """Return the feature [B, D] that retrieval uses beside the last layer: that of its own head, or the joint one.

        features: of `encode_image`.
        """
        return features.joint_BD if self.retrieval is None else self.retrieval(features.last_BV)

    def image_embedding(self, features: ImageFeatures) -> Tensor:
        """Return CLIP-ReID's test feature [B, V + D], last layer and retrieval feature side by side; not normalized."""
        return torch.cat([features.last_BV.float(), self.retrieval_feature(features).float()], dim=1)

    def encode_joint(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
        """Return CLIP's image features [B, D], in the joint space of images and texts; an `Encoder`."""
        return self.encode_image(images_BCHW, cameras_B).joint_BD

    def camera_numbers(self, camids: ArrayLike) -> Tensor | None:
        """Return the camera numbers [N] of `camids` for the encoders, or None without a camera embedding.

        Raises DataError for a camera without an embedding, which training has not seen.
        """
        if not self.sie:
            return None
        wanted, known = np.asarray(camids, dtype=np.int64), self.camera_ids_K.cpu().numpy()
        order = np.argsort(known)
        unknown = np.setdiff1d(wanted, known)
        if len(unknown):
            raise DataError(
                f"the model has camera embeddings for {known[order].tolist()} only, and the images include cameras "
                f"{unknown.tolist()}: train with train.sie=0 to use other cameras"
            )
        return torch.from_numpy(order[np.searchsorted(known, wanted, sorter=order)])

    def start_training(self) -> None:
        """Keep what the losses need of the weights before training. The training loop calls this before any step."""

    def end_training(self) -> None:
        """Drop what `start_training` kept."""

    @abstractmethod
    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the loss terms (scalars, unweighted) over the global batch."""

    @abstractmethod
    def readouts(self) -> dict[str, Readout]:
        """Return inference mode -> readout. The first mode is the default."""

    def encoders(self) -> dict[str, Encoder]:
        """Return inference mode -> encoder, in the order of `readouts`."""
        return {mode: self._encoder(read) for mode, read in self.readouts().items()}

    def encode_modes(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> dict[str, Tensor]:
        """Return the features of every mode and of the joint space, from one pass of the image tower."""
        features = self.encode_image(images_BCHW, cameras_B)
        return {**{mode: read(features) for mode, read in self.readouts().items()}, JOINT: features.joint_BD}

    def _encoder(self, read: Readout) -> Encoder:
        def encode(images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
            return read(self.encode_image(images_BCHW, cameras_B))

        return encode

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of `terms`."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
