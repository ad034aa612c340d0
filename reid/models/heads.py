"""Heads on the image features: BN-neck identity heads (Luo et al. 2019; CLIP-ReID, model/make_model.py), retrieval.

Shapes: B batch, D feature width, C identities, V vision width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.backbone import Backbone
from reid.precision import full_precision


class IdentityHead(nn.Module):
    """Batch norm with a frozen bias, then a linear classifier without bias, both in float32.

    The classifier gets normalized features; the triplet loss and retrieval use features before the norm.
    """

    def __init__(self, width: int, identities: int) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    @full_precision
    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the logits [B, C]. In training mode the norm uses batch statistics, so B must be the global batch."""
        return self.classifier(self.neck(features_BD))


class RetrievalHead(nn.Module):
    """A projection of the last class token [B, V] to a retrieval feature [B, D] beside CLIP's joint feature.

    It starts as a copy of CLIP's projection, so before training both features are equal. A ResNet has none, because its
    joint feature comes from attention pooling: there it starts from random weights, drawn with `seed`.
    """

    def __init__(self, backbone: Backbone, *, seed: int) -> None:
        super().__init__()
        width, out = backbone.last_width, backbone.joint_width
        if backbone.is_resnet:
            # A generator of its own: other new modules start alike with and without this head.
            weight_DV = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * width**-0.5
        else:
            weight_DV = backbone.clip.visual.proj.detach().T.clone()
        self.weight_DV = nn.Parameter(weight_DV.contiguous())

    def forward(self, last_BV: Tensor) -> Tensor:
        """Return the retrieval feature [B, D]."""
        return F.linear(last_BV, self.weight_DV)
