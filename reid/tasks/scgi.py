"""CLIP-SCGI as a task (arXiv:2410.09382). `ScgiConfig` lists the settings that the paper leaves open.

L = L_id + L_tri + L_con. L_id and L_tri supervise the image embedding as in CLIP-ReID's stage 2 and, with CFF, the
fused embedding; L_con contrasts the image feature with the composed prompt's. The text tower is frozen; gradients
flow through it to the pseudo-word.

Shapes: B images of this process, G of the global batch, L image tokens, T prompt tokens, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reid.config.train import TrainConfig
from reid.models.backbone import Backbone, ImageFeatures
from reid.models.heads import IdentityHead
from reid.models.prompts import ComposedPrompt, fixed_prompt
from reid.models.scgi import CaptionGuidedInversion, ContextualFeatureFusion
from reid.tasks.base import Batch, Gather, Readout, Task, no_gather
from reid.tasks.image import ImageHeads, gather_features, image_embedding
from reid.tasks.losses import cosine_image_text_loss, identity_loss, triplet_loss


class ScgiTask(Task):
    """CLIP-SCGI: CGI and CFF, each optional, on one backbone."""

    plain_1TD: Tensor
    """The encoded fixed prompt. The name is a key of model.safetensors, so it stays."""

    def __init__(
        self, backbone: Backbone, config: TrainConfig, *, identities: int, cameras: Sequence[int] = ()
    ) -> None:
        super().__init__(backbone, config, cameras=cameras)
        self.settings, self.loss = config.scgi, config.loss
        width = backbone.joint_width
        self.heads = ImageHeads(backbone, identities, config.loss)
        self.prompt = ComposedPrompt(backbone)
        self.weights = {**self.heads.weights, "con": self.loss.contrast_weight}
        if self.settings.cgi:
            self.cgi = CaptionGuidedInversion(
                width, backbone.text_width, inversion_tokens=self.settings.inversion_tokens, depth=self.settings.depth
            )
        if self.settings.cff:
            self.cff = ContextualFeatureFusion(width, depth=self.settings.fusion_depth)
            self.fused_head = IdentityHead(width, identities)
            self.weights |= {"id_fused": self.loss.id_weight, "tri_fused": self.loss.triplet_weight}
        self.register_buffer("plain_1TD", fixed_prompt(backbone))

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Return the terms id, tri, con and, with CFF, id_fused and tri_fused."""
        if batch.captions_BD is None:
            raise ValueError("CLIP-SCGI needs caption features: set captions_BD of the batch")
        features = self.encode_image(batch.images_BCHW, batch.cameras_B)
        prompt_BTD, tokens_BLD = self._prompt(features, batch.captions_BD)
        labels_G = gather(batch.labels_B)
        gathered = gather_features(features, gather)
        terms = self.heads(gathered, labels_G)
        text_BD = prompt_BTD[:, -1] if self.settings.cgi else batch.captions_BD
        terms["con"] = self._contrast(gathered.joint_BD, gather(text_BD), labels_G, gather(batch.items_B))
        if self.settings.cff:
            fused_GD = gather(self._fuse(prompt_BTD, tokens_BLD))
            terms["id_fused"] = identity_loss(self.fused_head(fused_GD), labels_G, self.loss.smoothing)
            terms["tri_fused"] = triplet_loss(fused_GD, labels_G, self.loss.margin)
        return terms

    def readouts(self) -> dict[str, Readout]:
        """Return `image` (image tower only) and, with CFF, `fused` (CFF with the fixed prompt, no caption)."""
        modes: dict[str, Readout] = {"image": image_embedding}
        if self.settings.cff:
            modes["fused"] = self._fused
        return modes

    def _fused(self, features: ImageFeatures) -> Tensor:
        tokens_BLD = features.tokens_BLD
        return self.cff(self.plain_1TD.expand(tokens_BLD.shape[0], -1, -1), tokens_BLD).float()

    def _prompt(self, features: ImageFeatures, captions_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoded prompt [B, T, D] and the image tokens [B, L, D] that CFF attends to."""
        tokens_BLD = features.tokens_BLD
        if not self.settings.cgi:
            return self.plain_1TD.expand(len(tokens_BLD), -1, -1), tokens_BLD
        word_BW, refined_BLD = self.cgi(tokens_BLD, captions_BD)
        prompt_BTD = self.prompt(self.backbone, word_BW[:, None])
        return prompt_BTD, refined_BLD if self.settings.fusion_tokens == "refined" else tokens_BLD

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

    def _contrast(self, image_GD: Tensor, text_GD: Tensor, labels_G: Tensor, items_G: Tensor) -> Tensor:
        keys_G = labels_G if self.settings.pairing == "identity" else items_G
        return cosine_image_text_loss(image_GD, text_GD, keys_G, self.settings.temperature)
