"""Float32 arithmetic for everything that compares features, whatever the precision of the encoders.

The losses, the identity heads, the ranking and the search use it.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")

_SHORTEST: Final = 1e-12
"""Length that rows are divided by at least, after scaling: only a row of zeros is shorter."""


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors so that it computes in float32 even under autocast.

    Floating-point arguments, also those in tuples, arrive as float32. A cast alone is not enough: autocast rounds the
    operands of every matrix product to half precision again.
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
    """Return the rows at length one, float32 [N, D], differentiable; rows of zeros stay zeros.

    Any floating-point type and any scale down to float32's smallest numbers: each row is first multiplied by the power
    of two that brings its largest entry to 0.5..1, which is exact, so that no square overflows or vanishes. A row with
    a NaN or an infinity becomes NaN.
    """
    x_ND = scaled_rows(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        return F.normalize(x_ND, dim=1, eps=_SHORTEST)


def scaled_rows(x_ND: Tensor) -> Tensor:
    """Return the rows times powers of two, so that the largest entry of each is in 0.5..1; float32 [N, D]."""
    x_ND = x_ND if x_ND.dtype == torch.float64 else x_ND.float()
    if not x_ND.shape[0]:
        return x_ND.float()
    largest_N1 = x_ND.detach().abs().amax(dim=1, keepdim=True)
    for factor_N1 in _powers(-torch.frexp(largest_N1).exponent, x_ND.dtype):
        x_ND = x_ND * factor_N1
    return x_ND.float()


def _powers(exponents_N1: Tensor, dtype: torch.dtype) -> Iterable[Tensor]:
    """Yield two factors whose product is 2 ** exponent; the product itself may be beyond the largest number."""
    half_N1 = exponents_N1 // 2
    for part_N1 in (half_N1, exponents_N1 - half_N1):
        yield torch.ones_like(part_N1, dtype=dtype).ldexp(part_N1)
