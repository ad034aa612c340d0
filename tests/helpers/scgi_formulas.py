"""The layers of CGI and CFF written out in NumPy, in float64, for one image."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
M = TypeVar("M", bound=nn.Module)


def array(module: nn.Module, name: str) -> Array:
    """Return a parameter in float64."""
    return np.asarray(module.state_dict()[name].double())


def linear(module: nn.Module, name: str, x: Array) -> Array:
    """Return a linear layer's output."""
    return x @ array(module, f"{name}.weight").T + array(module, f"{name}.bias")


def norm(module: nn.Module, name: str, x: Array) -> Array:
    """Return a layer norm's output."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * array(module, f"{name}.weight") + array(module, f"{name}.bias")


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attend(module: nn.Module, prefix: str, x: Array, context: Array, heads: int) -> Array:
    """Return the multi-head attention of one image: x [Q, D], context [L, D]."""
    query, key, value = (linear(module, f"{prefix}{name}", y) for name, y in zip(
        ("query", "key", "value"), (x, context, context), strict=True))  # fmt: skip
    size = x.shape[1] // heads
    parts = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        weights = softmax(query[:, cut] @ key[:, cut].T / math.sqrt(size))
        parts.append(weights @ value[:, cut])
    return linear(module, f"{prefix}out", np.concatenate(parts, 1))


def gelu(x: Array) -> Array:
    """Return GELU, with the error function."""
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def feed(module: nn.Module, prefix: str, x: Array) -> Array:
    """Return the output of a feed-forward layer."""
    return linear(module, f"{prefix}2", gelu(linear(module, f"{prefix}0", x)))


def mlp3(module: nn.Module, prefix: str, x: Array) -> Array:
    """Return the output of three linear layers with ReLU between them."""
    x = np.maximum(linear(module, f"{prefix}0", x), 0)
    return linear(module, f"{prefix}4", np.maximum(linear(module, f"{prefix}2", x), 0))


def cross(module: nn.Module, prefix: str, query: Array, context: Array, heads: int) -> Array:
    """Return the output of a `CrossBlock` without the norm before its feed-forward layer."""
    normed = norm(module, f"{prefix}norm_query", query), norm(module, f"{prefix}norm_context", context)
    query = query + attend(module, f"{prefix}attention.", *normed, heads)
    return query + feed(module, f"{prefix}feed.", query)


def stirred(module: M, seed: int) -> M:
    """Return the module with random norms and biases, so that every part matters; they start at 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()
