"""Machines with any number of GPUs, for tests of devices."""

from __future__ import annotations


class Machine:
    """Stands in for ``torch.cuda`` on a machine with `count` GPUs. works: whether the driver does."""

    def __init__(self, count: int, *, works: bool | None = None) -> None:
        self._count, self._works = count, count > 0 if works is None else works

    def is_available(self) -> bool:
        """Return True if the driver works."""
        return self._works

    def device_count(self) -> int:
        """Return the number of GPUs."""
        return self._count
