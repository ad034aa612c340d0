"""Attention probabilities of a forward pass, and their gradients, recorded by hooks; the model is not changed.

A hook keeps the input and the output of an attention layer. The probabilities follow from the input and the weights of
query and key. The gradient with respect to them follows from that with respect to the output, because the output is
linear in the probabilities. So the recorded forward pass is bit for bit that of the model with gradients enabled;
inference without gradients uses PyTorch's fused attention, which differs by rounding.

Shapes: B batch, Q tokens that attend, L tokens attended to, D width, H heads, C width of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.scgi import Attention


class _Projections(NamedTuple):
    """The weights of an attention layer: three linear maps of tokens, and the matrix [D, D] after the heads."""

    heads: int
    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    out_DD: Tensor


def _projections(layer: nn.Module) -> _Projections:
    if isinstance(layer, Attention):
        return _Projections(layer.heads, layer.query, layer.key, layer.value, layer.out.weight)
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None and layer.bias_k is None:
        weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)

        def linear(part: int) -> Callable[[Tensor], Tensor]:
            return lambda tokens: F.linear(tokens, weights[part], biases[part])

        return _Projections(layer.num_heads, linear(0), linear(1), linear(2), layer.out_proj.weight)
    raise TypeError(f"cannot record the attention of {type(layer).__name__}")


@dataclass(frozen=True, kw_only=True)
class Attended:
    """One call of an attention layer. output_BQD is part of the graph of the forward pass."""

    layer: nn.Module
    queries_BQD: Tensor
    context_BLD: Tensor
    output_BQD: Tensor

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Return the attention probabilities [B, H, Q, L]; each row sums to 1."""
        weights = _projections(self.layer)
        query_BHQC = _heads(weights.query(self.queries_BQD), weights.heads)
        key_BHLC = _heads(weights.key(self.context_BLD), weights.heads)
        scale = query_BHQC.shape[-1] ** -0.5
        return (query_BHQC @ key_BHLC.transpose(-1, -2) * scale).softmax(-1)

    @torch.no_grad()
    def gradient(self, output_gradient_BQD: Tensor) -> Tensor:
        """Return the gradient [B, H, Q, L] with respect to the probabilities, from that with respect to the output."""
        weights = _projections(self.layer)
        mixed_BHQC = _heads(output_gradient_BQD @ weights.out_DD, weights.heads)
        return mixed_BHQC @ _heads(weights.value(self.context_BLD), weights.heads).transpose(-1, -2)


def _heads(x_BLD: Tensor, heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


@contextmanager
def record_attention(layers: Sequence[nn.Module]) -> Iterator[list[Attended]]:
    """Yield a list that holds, after a forward pass in the block, one `Attended` per call, in the order of the calls.

    layers: open_clip's `nn.MultiheadAttention` layers (batch first, without mask) or `reid.models.scgi.Attention`.
    """
    found: list[Attended] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        result = output[0] if isinstance(output, tuple) else output
        queries, context = inputs[0].detach(), inputs[1].detach()
        found.append(Attended(layer=layer, queries_BQD=queries, context_BLD=context, output_BQD=result))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
