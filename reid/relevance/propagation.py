"""How relevance passes through attention layers: attention rollout and gradient-weighted relevance.

Rollout (Abnar & Zuidema 2020, arXiv:2005.00928) averages the heads and mixes in the residual path: A' = (A + I) / 2. It
shows where information comes from, whatever it is used for. Gradient-weighted relevance (Chefer, Gur & Wolf, ICCV 2021,
arXiv:2103.15679, eq. 5-6) weighs each probability by how much it raises the explained score: A' = I + E_h[(dA * A)+].

Both multiply A' over the layers. Only the row of the token that the embedding is read from is needed, so it is carried
backwards from the last layer: [B, L] instead of [B, L, L].

Shapes: B batch, H heads, Q tokens that attend, L tokens attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from reid.relevance.attention import Attended

Method = Literal["gradient", "rollout"]
METHODS: Final[tuple[Method, ...]] = ("gradient", "rollout")


def mean_heads(probabilities_BHQL: Tensor) -> Tensor:
    """Return rollout's weights [B, Q, L] of a layer: the mean over the heads."""
    return probabilities_BHQL.mean(1)


def positive_part(probabilities_BHQL: Tensor, gradients_BHQL: Tensor) -> Tensor:
    """Return Chefer's weights [B, Q, L] of a layer: the mean over the heads of (gradient * probability)+."""
    return (gradients_BHQL * probabilities_BHQL).clamp(min=0).mean(1)


def through_rollout(row_BL: Tensor, weights_BLL: Tensor) -> Tensor:
    """Return ``row @ (A + I) / 2``: rollout through one self-attention layer with its residual path."""
    return (row_BL + _times(row_BL, weights_BLL)) / 2


def through_gradient(row_BL: Tensor, weights_BLL: Tensor) -> Tensor:
    """Return ``row @ (I + A)``: gradient-weighted relevance through one self-attention layer."""
    return row_BL + _times(row_BL, weights_BLL)


def across(row_BQ: Tensor, weights_BQL: Tensor) -> Tensor:
    """Return the row [B, L] after cross-attention; the residual path is left out, because it carries no image."""
    return _times(row_BQ, weights_BQL)


def _times(row_BQ: Tensor, weights_BQL: Tensor) -> Tensor:
    return torch.bmm(row_BQ[:, None], weights_BQL)[:, 0]


def layer_weights(calls: Sequence[Attended], method: Method, score: Tensor) -> list[Tensor]:
    """Return the weights [B, Q, L] of each recorded call.

    score: the explained scalar, the sum over the batch of scores that depend on one image each.
    """
    if method == "rollout":
        return [mean_heads(call.probabilities()) for call in calls]
    gradients = torch.autograd.grad(score, [call.output_BQD for call in calls])
    return [
        positive_part(call.probabilities(), call.gradient(gradient))
        for call, gradient in zip(calls, gradients, strict=True)
    ]
