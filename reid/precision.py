"""Float32 arithmetic for every comparison of features, whatever the precision of the encoders.

Used by the losses, the identity heads, the ranking and the search.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")

_SHORTEST: Final = 1e-12
"""Smallest divisor of a row after scaling; only a row of zeros is shorter."""


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` so that it computes in float32 even under autocast.

    Floating-point arguments, also inside tuples, are cast to float32. The cast is not enough, because autocast rounds
    the operands of matrix products to half precision again; so autocast is off inside.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: list[Tensor] = []
        arguments = [_as_float32(value, given) for value in args]
        named = {name: _as_float32(value, given) for name, value in kwargs.items()}
        with torch.autocast(given[0].device.type if given else "cpu", enabled=False):
            return function(*arguments, **named)

    return run


def _as_float32(value: Any, given: list[Tensor]) -> Any:
    """Return `value` with its floating-point tensors as float32, and add its tensors to `given`."""
    if isinstance(value, Tensor):
        given.append(value)
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple):
        parts = [_as_float32(part, given) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def unit_rows(x_ND: Tensor) -> Tensor:
    """Return the rows scaled to length one, float32 [N, D], differentiable; a row of zeros stays zero.

    Takes any floating-point type and any scale: each row is first multiplied by the power of two that brings its
    largest entry to 0.5..1, which is exact and keeps squares from overflow and underflow. Entries must be finite.
    """
    x_ND = x_ND if x_ND.dtype == torch.float64 else x_ND.float()
    for factor_N1 in _factors(x_ND.detach()):
        x_ND = x_ND * factor_N1
    with torch.autocast(x_ND.device.type, enabled=False):
        return F.normalize(x_ND.float(), dim=1, eps=_SHORTEST)


def _factors(x_ND: Tensor) -> Iterator[Tensor]:
    """Yield two powers of two [N, 1] whose product brings the largest entry of each row to 0.5..1.

    Two, because their product may exceed the largest float32: it is 2 ** 149 for the smallest entry.
    """
    largest_N1 = torch.linalg.vector_norm(x_ND, ord=torch.inf, dim=1, keepdim=True)
    exponent_N1 = -torch.frexp(largest_N1).exponent
    half_N1 = exponent_N1 // 2
    for part_N1 in (half_N1, exponent_N1 - half_N1):
        yield torch.ones_like(largest_N1).ldexp(part_N1)
