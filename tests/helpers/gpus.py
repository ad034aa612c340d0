"""Machines whose GPUs have a memory and an age, for tests of the checks before a run."""

from __future__ import annotations

from flows.preflight.machine import Memory
from tests.helpers.devices import Machine


class Gpus(Machine):
    """A machine with `count` GPUs of `n_bytes` each, all of it free. bf16: whether they have its instructions."""

    def __init__(self, count: int, *, n_bytes: int = 80 << 30, bf16: bool = True) -> None:
        super().__init__(count)
        self._n_bytes, self._bf16 = n_bytes, bf16

    def memory(self, number: int) -> Memory:
        """Return the memory of a GPU."""
        return Memory(self._n_bytes, self._n_bytes)

    def computes_bf16(self, number: int) -> bool:
        """Return True if a GPU has bf16 instructions."""
        return self._bf16
