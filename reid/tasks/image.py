"""The fine-tuned CLIP baseline and CLIP-ReID's second stage (arXiv:2211.13977; Syliz517/CLIP-ReID).

Shapes: B images of this process, G of the global batch, C identities, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reid.config.train import TrainConfig
from reid.models.backbone import Backbone
from reid.tasks.base import Batch, Encoder, Gather, ImageHeads, Task, gather_features, image_encoder, no_gather
from reid.tasks.losses import prompt_loss


class BaselineTask(Task):
    """The image tower with two identity heads and three triplet features (model/make_model.py)."""

    def __init__(
        self, backbone: Backbone, config: TrainConfig, *, identities: int, cameras: Sequence[int] = ()
    ) -> None:
        super().__init__(backbone, config, cameras=cameras)
        self.loss = config.loss
        self.heads = ImageHeads(backbone, identities)
        self.weights = {"id": self.loss.id_weight, "tri": self.loss.triplet_weight}

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms id and tri."""
        features = gather_features(self.encode_image(batch.images_BCHW, batch.cameras_B), gather)
        return self.heads(features, gather(batch.labels_B), self.loss)

    def encoders(self) -> dict[str, Encoder]:
        """Return `image`, the only mode."""
        return {"image": image_encoder(self)}


class ClipReidTask(BaselineTask):
    """The baseline plus a cross entropy of the image's similarities to every identity's learned prompt.

    The prompts' features are frozen: they come from the first stage (reid.training.prompt_learning).
    """

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
        empty = torch.zeros(identities, backbone.joint_width)  # of a model about to be loaded
        self.register_buffer("texts_CD", empty if texts_CD is None else texts_CD)
        self.weights = {**self.weights, "i2t": self.loss.contrast_weight}

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms id, tri and i2t."""
        features = gather_features(self.encode_image(batch.images_BCHW, batch.cameras_B), gather)
        labels_G = gather(batch.labels_B)
        terms = self.heads(features, labels_G, self.loss)
        image_to_text = prompt_loss(features.joint_BD, self.texts_CD, labels_G, self.loss.smoothing)
        return {**terms, "i2t": image_to_text}
