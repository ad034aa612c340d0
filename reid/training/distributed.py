"""Gather the batch parts of several processes, with gradients.

Shapes: B items of this process, G = world x B items of all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reid.precision import full_precision


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_B: Tensor) -> Tensor:
        parts = [torch.empty_like(x_B) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_B.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process computes the whole loss, so this gradient is already complete. Data-parallel training divides
        # the sum over processes by their number; the sum taken here compensates for that.
        (gradient_G,) = gradients
        total_G = gradient_G.contiguous()
        dist.all_reduce(total_G)
        return total_G.chunk(dist.get_world_size())[dist.get_rank()]


@full_precision
def gather_batch(x_B: Tensor) -> Tensor:
    """Return the parts of all processes in the order of their ranks, [G, ...], differentiable.

    Floating-point parts are gathered as float32, because the backward pass sums the gradients of all processes.
    """
    return _Gather.apply(x_B)
