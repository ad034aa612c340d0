"""The loss terms of person re-identification, in float32 whatever the precision of the features, and their values.

Shapes: B batch, C classes, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import ClipScgiError
from reid.precision import full_precision, unit_rows


@full_precision
def identity_loss(scores_BC: Tensor, labels_B: Tensor, smoothing: float) -> Tensor:
    """Return the cross entropy to (1 - e) * one-hot + e / C (Szegedy et al. 2016; CLIP-ReID, loss/softmax_loss.py)."""
    return F.cross_entropy(scores_BC, labels_B, label_smoothing=smoothing)


@full_precision
def pairwise_distances(x_BD: Tensor) -> Tensor:
    """Return Euclidean distances [B, B]; squares are clamped at 1e-12 so that the gradient exists at zero."""
    squares_B = x_BD.square().sum(1)
    squared_BB = squares_B[:, None] + squares_B[None] - 2 * (x_BD @ x_BD.T)
    return squared_BB.clamp(min=1e-12).sqrt()


@full_precision
def triplet_loss(x_BD: Tensor, labels_B: Tensor, margin: float | None) -> Tensor:
    """Return the batch-hard triplet loss (Hermans et al. 2017): farthest positive, nearest negative of each image.

    With a margin: mean of max(0, d_ap - d_an + margin). Without: the soft form, mean of log(1 + exp(d_ap - d_an)).
    The batch must contain two identities or more. The only image of an identity is its own positive, as in CLIP-ReID's
    code.
    """
    distances_BB = pairwise_distances(x_BD)
    same_BB = labels_B[:, None] == labels_B[None]
    positive_B = distances_BB.masked_fill(~same_BB, -torch.inf).amax(1)
    negative_B = distances_BB.masked_fill(same_BB, torch.inf).amin(1)
    if margin is None:
        return F.softplus(positive_B - negative_B).mean()
    return F.relu(positive_B - negative_B + margin).mean()


@full_precision
def contrastive_loss(
    anchors_BD: Tensor, targets_BD: Tensor, anchor_keys_B: Tensor, target_keys_B: Tensor, temperature: float
) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020); targets with an anchor's key are its positives.

    If keys are identities, this is CLIP-ReID's loss at temperature 1 (loss/supcontrast.py); if keys are unique, InfoNCE
    by image.
    """
    logits_BB = anchors_BD @ targets_BD.T / temperature
    positive_BB = (anchor_keys_B[:, None] == target_keys_B[None]).float()
    log_share_BB = F.log_softmax(logits_BB, dim=1)
    return -((positive_BB * log_share_BB).sum(1) / positive_BB.sum(1)).mean()


@full_precision
def image_text_loss(image_BD: Tensor, text_BD: Tensor, keys_B: Tensor, temperature: float) -> Tensor:
    """Return L_i2t + L_t2i: `contrastive_loss` in both directions."""
    return contrastive_loss(image_BD, text_BD, keys_B, keys_B, temperature) + contrastive_loss(
        text_BD, image_BD, keys_B, keys_B, temperature
    )


@full_precision
def cosine_image_text_loss(image_BD: Tensor, text_BD: Tensor, keys_B: Tensor, temperature: float) -> Tensor:
    """Return L_con of CLIP-SCGI: `image_text_loss` of L2-normalized features."""
    return image_text_loss(unit_rows(image_BD), unit_rows(text_BD), keys_B, temperature)


@full_precision
def distillation_loss(image_BD: Tensor, frozen_BD: Tensor, text_BD: Tensor, temperature: float) -> Tensor:
    """Return how far the similarities of images and texts have moved from those of a frozen image tower.

    KL(frozen || trained) of the softmax of cosine similarities over `temperature`, over the texts of each image plus
    over the images of each text; each is the mean over its rows. No gradient flows into `frozen_BD` and `text_BD`.
    """
    text_DB = unit_rows(text_BD.detach()).T
    trained_BB = unit_rows(image_BD) @ text_DB / temperature
    frozen_BB = unit_rows(frozen_BD.detach()) @ text_DB / temperature
    return _divergence(frozen_BB, trained_BB) + _divergence(frozen_BB.T, trained_BB.T)


def _divergence(target_BB: Tensor, logits_BB: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(target) || softmax(logits))."""
    log_target_BB, log_share_BB = F.log_softmax(target_BB, dim=1), F.log_softmax(logits_BB, dim=1)
    return F.kl_div(log_share_BB, log_target_BB, reduction="batchmean", log_target=True)


@full_precision
def prompt_loss(image_BD: Tensor, texts_CD: Tensor, labels_B: Tensor, smoothing: float) -> Tensor:
    """Return `identity_loss` of dot products of images and the prompts of all identities (CLIP-ReID, stage 2)."""
    return identity_loss(image_BD @ texts_CD.T, labels_B, smoothing)


class DivergedError(ClipScgiError):
    """A loss term is NaN or infinite. The optimizer has not moved since the last finite step."""


def finite_values(total: Tensor, terms: Mapping[str, Tensor], where: str) -> dict[str, float]:
    """Return the total as "loss", and the terms, as Python numbers, copied from the device at once.

    where: what would have come next, for the message. Raises DivergedError that names every term that is not finite.
    """
    numbers = torch.stack([total.detach().float(), *(term.detach().float() for term in terms.values())]).tolist()
    values = dict(zip(["loss", *terms], numbers, strict=True))
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"training stopped before {where}: {', '.join(bad)}. The weights are those of the last finite step. Lower "
            "the learning rates (train.schedule.lr_clip, train.schedule.lr_new), raise train.schedule.warmup_epochs, "
            "or set train.precision=no"
        )
    return values
