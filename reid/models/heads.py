"""BN-neck identity heads (Luo et al. 2019; CLIP-ReID, model/make_model.py).

Shapes: B batch, D feature width, C identities.
"""

from __future__ import annotations

from torch import Tensor, nn

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
