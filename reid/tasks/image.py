"""The fine-tuned CLIP baseline and CLIP-ReID's second stage (arXiv:2211.13977; Syliz517/CLIP-ReID).

Shapes: B images of this process, G of the global batch, C identities, V vision width, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from reid.config.train import LossConfig, TrainConfig
from reid.models.backbone import Backbone, ImageFeatures
from reid.models.heads import IdentityHead
from reid.tasks.base import Batch, Gather, Readout, Task, no_gather
from reid.tasks.losses import identity_loss, prompt_loss, triplet_loss


class GatheredFeatures(NamedTuple):
    """Image features of the global batch. retrieval_GD: the joint ones, unless retrieval has a head of its own."""

    penultimate_GV: Tensor
    last_GV: Tensor
    joint_GD: Tensor
    retrieval_GD: Tensor


class ImageHeads(nn.Module):
    """CLIP-ReID's supervision of the image tower: two identity heads, three triplet features.

    Every method trains with these terms; `weights` is their part of `Task.weights`.
    """

    def __init__(self, backbone: Backbone, identities: int, loss: LossConfig) -> None:
        super().__init__()
        self.loss = loss
        self.weights = {"id": loss.id_weight, "tri": loss.triplet_weight}
        self.last = IdentityHead(backbone.last_width, identities)
        # The name is a key of model.safetensors, so it stays; a separate retrieval feature has the same width.
        self.joint = IdentityHead(backbone.joint_width, identities)

    def forward(self, features: GatheredFeatures, labels_G: Tensor) -> dict[str, Tensor]:
        """Return the terms `id` and `tri`."""
        smoothing, margin = self.loss.smoothing, self.loss.margin
        identity = identity_loss(self.last(features.last_GV), labels_G, smoothing) + identity_loss(
            self.joint(features.retrieval_GD), labels_G, smoothing
        )
        compared = (features.penultimate_GV, features.last_GV, features.retrieval_GD)
        triplet = torch.stack([triplet_loss(x, labels_G, margin) for x in compared]).sum()
        return {"id": identity, "tri": triplet}


def gather_features(task: Task, features: ImageFeatures, gather: Gather) -> GatheredFeatures:
    """Gather the class vectors of all processes. The patches are not gathered, because no loss reads them."""
    joint_GD = gather(features.joint_BD)
    return GatheredFeatures(
        penultimate_GV=gather(features.penultimate_BV),
        last_GV=gather(features.last_BV),
        joint_GD=joint_GD,
        retrieval_GD=joint_GD if task.retrieval is None else gather(task.retrieval_feature(features)),
    )


class BaselineTask(Task):
    """The image tower with two identity heads and three triplet features (model/make_model.py)."""

    trains_joint: ClassVar[bool] = False
    """Whether a loss sees the joint feature even if retrieval has its own head."""

    def __init__(
        self, backbone: Backbone, config: TrainConfig, *, identities: int, cameras: Sequence[int] = ()
    ) -> None:
        super().__init__(backbone, config, cameras=cameras)
        self.loss = config.loss
        self.heads = ImageHeads(backbone, identities, config.loss)
        self.weights = self.heads.weights
        if self.retrieval is not None and not self.trains_joint:
            backbone.freeze_joint()

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms of `ImageHeads`."""
        features = gather_features(self, self.encode_image(batch.images_BCHW, batch.cameras_B), gather)
        return self.heads(features, gather(batch.labels_B))

    def readouts(self) -> dict[str, Readout]:
        """Return `image`, the only mode."""
        return {"image": self.image_embedding}


class ClipReidTask(BaselineTask):
    """The baseline plus a cross entropy of the image's similarities to every identity's learned prompt.

    The prompts' features are frozen: they come from the first stage (`reid.training.prompt_learning`).
    """

    trains_joint: ClassVar[bool] = True
    texts_CD: Tensor

    def __init__(
        self,
        backbone: Backbone,
        config: TrainConfig,
        *,
        identities: int,
        cameras: Sequence[int] = (),
        texts_CD: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, config, identities=identities, cameras=cameras)
        empty = torch.zeros(identities, backbone.joint_width)  # replaced when a saved model is loaded
        self.register_buffer("texts_CD", empty if texts_CD is None else texts_CD)
        self.weights = {**self.heads.weights, "i2t": self.loss.contrast_weight}

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms of `ImageHeads` and i2t."""
        features = gather_features(self, self.encode_image(batch.images_BCHW, batch.cameras_B), gather)
        labels_G = gather(batch.labels_B)
        image_to_text = prompt_loss(features.joint_GD, self.texts_CD, labels_G, self.loss.smoothing)
        return {**self.heads(features, labels_G), "i2t": image_to_text}
