"""The guard against losses that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from data.errors import ClipScgiError


class DivergedError(ClipScgiError):
    """A loss term is not finite. The optimiser has not moved since the last finite step."""


def finite_values(total: Tensor, terms: Mapping[str, Tensor], where: str) -> dict[str, float]:
    """Return the total as "loss" and the terms as numbers, in one transfer.

    where: what would have come next, for the message. Raises DivergedError, which names every term that is not finite.
    """
    numbers = torch.stack([total.detach().float(), *(term.detach().float() for term in terms.values())]).tolist()
    values = dict(zip(["loss", *terms], numbers, strict=True))
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"training stopped before {where}: {', '.join(bad)}. Weights are as after the last finite step. Lower the "
            "learning rates, lengthen the warm-up, or train without fp16"
        )
    return values
