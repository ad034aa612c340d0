"""CLIP-SCGI as a task (arXiv:2410.09382). `ScgiConfig` lists the settings that the paper leaves open.

L = L_id + L_tri + L_con, and optionally the distillation of the joint space, which is not in the paper. L_id and L_tri
supervise the image embedding as in CLIP-ReID's stage 2 and, with CFF, the fused embedding; L_con contrasts the image
feature with the composed prompt's. The text tower is frozen; gradients flow through it to the pseudo-word.

Shapes: B images of this process, G of the global batch, L image tokens, T prompt tokens, D joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reid.config.train import TrainConfig
from reid.models.backbone import Backbone, ImageFeatures
from reid.models.heads import IdentityHead
from reid.models.prompts import SCGI_PROMPTS, ComposedPrompt, fixed_prompt
from reid.models.scgi import CaptionGuidedInversion, ContextualFeatureFusion
from reid.tasks.base import Batch, Gather, Readout, Task, no_gather
from reid.tasks.image import GatheredFeatures, ImageHeads, gather_features
from reid.tasks.losses import cosine_image_text_loss, distillation_loss, identity_loss, triplet_loss


class _Composed(NamedTuple):
    """What CFF and L_con read. tokens_BLD: what CFF attends to. class_BD: the image side of L_con."""

    prompt_BTD: Tensor
    tokens_BLD: Tensor
    class_BD: Tensor


class ScgiTask(Task):
    """CLIP-SCGI: CGI and CFF, each optional, on one backbone."""

    plain_1TD: Tensor
    """The encoded fixed prompt. The name is a key of model.safetensors, so it stays."""

    def __init__(
        self, backbone: Backbone, config: TrainConfig, *, identities: int, cameras: Sequence[int] = ()
    ) -> None:
        super().__init__(backbone, config, cameras=cameras)
        self.settings, self.loss = config.scgi, config.loss
        self.weights = {"con": self.loss.contrast_weight}
        self.frozen: Callable[[Tensor], ImageFeatures] | None = None
        prompts, width = SCGI_PROMPTS[self.settings.prompt_end], backbone.joint_width
        self.fixed_text = prompts.fixed
        if self.settings.supervised != "fused":
            self.heads = ImageHeads(backbone, identities, config.loss)
            self.weights |= self.heads.weights
        self.prompt = ComposedPrompt(backbone, prompts.suffix)
        if self.settings.cgi:
            self.cgi = CaptionGuidedInversion(
                width,
                backbone.text_width,
                inversion_tokens=self.settings.inversion_tokens,
                depth=self.settings.depth,
                unit_inputs=self.settings.inversion_inputs == "normalized",
                feed_norm=self.settings.inversion_feed_norm,
            )
        if self.settings.cff:
            self.cff = ContextualFeatureFusion(width, depth=self.settings.fusion_depth)
            self.fused_head = IdentityHead(width, identities)
            self.weights |= {"id_fused": self.loss.id_weight, "tri_fused": self.loss.triplet_weight}
        if self.loss.distill_weight:
            self.weights |= {"distill": self.loss.distill_weight}
        self.register_buffer("plain_1TD", fixed_prompt(backbone, prompts.fixed))

    def start_training(self) -> None:
        """Keep a frozen copy of the image tower for the distillation."""
        if self.loss.distill_weight:
            self.frozen = self.backbone.frozen_image()

    def end_training(self) -> None:
        """Drop the frozen copy."""
        self.frozen = None

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms con, id and tri, with CFF id_fused and tri_fused, and with a weight distill."""
        if batch.captions_BD is None:
            raise ValueError("CLIP-SCGI needs caption features: set captions_BD of the batch")
        features = self.encode_image(batch.images_BCHW, batch.cameras_B)
        composed = self._compose(features, batch.captions_BD)
        labels_G = gather(batch.labels_B)
        gathered = gather_features(self, features, gather)
        terms = self.heads(gathered, labels_G) if self.settings.supervised != "fused" else {}
        keys_G = labels_G if self.settings.pairing == "identity" else gather(batch.items_B)
        terms["con"] = self._contrast(composed, batch.captions_BD, gathered, keys_G, gather)
        if self.settings.cff:
            fused_GD = gather(self._fuse(composed.prompt_BTD, composed.tokens_BLD))
            terms["id_fused"] = identity_loss(self.fused_head(fused_GD), labels_G, self.loss.smoothing)
            terms["tri_fused"] = triplet_loss(fused_GD, labels_G, self.loss.margin)
        if self.loss.distill_weight:
            terms["distill"] = self._distill(batch, gathered, gather)
        return terms

    def readouts(self) -> dict[str, Readout]:
        """Return `image` (image tower only) and, with CFF, `fused` (CFF with the fixed prompt, no caption)."""
        modes: dict[str, Readout] = {"image": self.image_embedding}
        if self.settings.cff:
            modes["fused"] = self._fused
        return modes

    def _fused(self, features: ImageFeatures) -> Tensor:
        tokens_BLD = features.tokens_BLD
        return self.cff(self.plain_1TD.expand(tokens_BLD.shape[0], -1, -1), tokens_BLD).float()

    def _compose(self, features: ImageFeatures, captions_BD: Tensor) -> _Composed:
        tokens_BLD = features.tokens_BLD
        if not self.settings.cgi:
            return _Composed(self.plain_1TD.expand(len(tokens_BLD), -1, -1), tokens_BLD, features.joint_BD)
        word_BW, refined_BLD = self.cgi(tokens_BLD, captions_BD)
        prompt_BTD = self.prompt(self.backbone, word_BW[:, None])
        fusion, contrast = self.settings.fusion_tokens, self.settings.contrast_image
        return _Composed(
            prompt_BTD,
            refined_BLD if fusion == "refined" else tokens_BLD,
            refined_BLD[:, 0] if contrast == "refined" else features.joint_BD,
        )

    def _fuse(self, prompt_BTD: Tensor, tokens_BLD: Tensor) -> Tensor:
        """Return fused embeddings [B, D]; `fixed_prompt_ratio` of them, evenly distributed, use the fixed prompt."""
        steps = torch.arange(len(prompt_BTD) + 1) * self.settings.fixed_prompt_ratio
        chosen_B = steps[1:].floor() > steps[:-1].floor()
        if not self.settings.cgi or not chosen_B.any():
            return self.cff(prompt_BTD, tokens_BLD)
        fixed, composed = chosen_B.nonzero().flatten(), (~chosen_B).nonzero().flatten()
        parts = [self.cff(self.plain_1TD.expand(len(fixed), -1, -1), tokens_BLD[fixed])]
        if len(composed):
            parts.append(self.cff(prompt_BTD[composed], tokens_BLD[composed]))
        return torch.cat(parts)[torch.cat([fixed, composed]).argsort()]

    def _contrast(
        self, composed: _Composed, captions_BD: Tensor, gathered: GatheredFeatures, keys_G: Tensor, gather: Gather
    ) -> Tensor:
        """Return L_con: the mean over the chosen text sides."""
        plain = self.settings.contrast_image == "plain"
        image_GD = gathered.joint_GD if plain else gather(composed.class_BD)
        losses = [
            cosine_image_text_loss(image_GD, gather(text_BD), keys_G, self.settings.temperature)
            for text_BD in self._text_sides(composed.prompt_BTD, captions_BD)
        ]
        return torch.stack(losses).mean()

    def _text_sides(self, prompt_BTD: Tensor, captions_BD: Tensor) -> Iterator[Tensor]:
        """Yield the text features [B, D] that L_con contrasts images with."""
        side = self.settings.contrast_text if self.settings.cgi else "caption"
        if side != "caption":
            yield prompt_BTD[:, -1]
        if side != "composed":
            yield captions_BD

    def _distill(self, batch: Batch, gathered: GatheredFeatures, gather: Gather) -> Tensor:
        if self.frozen is None:
            raise ValueError("the distillation compares with the weights before training: call start_training first")
        assert batch.captions_BD is not None
        frozen_GD = gather(self.frozen(batch.images_BCHW).joint_BD)
        return distillation_loss(gathered.joint_GD, frozen_GD, gather(batch.captions_BD), self.loss.distill_temperature)
