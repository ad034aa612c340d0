"""The order in which a GPU adds numbers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from data.device import cuda_devices

_CUBLAS: Final = "CUBLAS_WORKSPACE_CONFIG"
_REPEATABLE_CUBLAS: Final = (":4096:8", ":16:8")
"""The values with which cuBLAS adds in a fixed order."""


class _OrderSwitches:
    """The switches that fix the order of additions on a GPU: global, so blocks in several threads share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._undo = ExitStack()

    def enter(self, torch: Any) -> None:
        """Fix the order from here on."""
        with self._lock:
            if not self._blocks:
                self._set(torch)
            self._blocks += 1

    def leave(self) -> None:
        """Restore what was set before the first block, if no other block runs."""
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._undo.close()

    def _set(self, torch: Any) -> None:
        filling = torch.utils.deterministic
        self._undo.callback(setattr, filling, "fill_uninitialized_memory", filling.fill_uninitialized_memory)
        before, warned = torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled
        self._undo.callback(torch.use_deterministic_algorithms, before(), warn_only=warned())
        if os.environ.get(_CUBLAS) not in _REPEATABLE_CUBLAS:
            self._undo.callback(_restore, _CUBLAS, os.environ.get(_CUBLAS))
            os.environ[_CUBLAS] = _REPEATABLE_CUBLAS[0]
        filling.fill_uninitialized_memory = False  # a check for bugs, which takes time
        # An operation without such an order warns, once, and goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


_ORDER: Final = _OrderSwitches()


@contextmanager
def fixed_order(torch: Any) -> Iterator[None]:
    """Add in a fixed order on a GPU while the block runs, so that the same features there have the same bits.

    It is for inference: PyTorch's attention has no such order in its backward pass unless operations without one are
    errors. On the CPU, the order is fixed for a number of threads; without a GPU, the block changes nothing. Blocks may
    be nested, and several threads may run blocks at the same time. torch: the module.
    """
    if not cuda_devices(torch.cuda):
        yield
        return
    _ORDER.enter(torch)
    try:
        yield
    finally:
        _ORDER.leave()
