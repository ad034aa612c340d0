"""Progress reports of long work: one callback, so that stages depend on neither terminals nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

ProgressFn = Callable[[int, int, str], None]
"""Called with (done, total, note) as work progresses; `note` is short, such as "loss 1.42"."""


def silent(done: int, total: int, note: str) -> None:
    """Report nothing; the default when a stage is called as a library."""
