"""How long work says how far it is: one callback, so that stages know neither terminals nor Prefect."""

from __future__ import annotations

from collections.abc import Callable

ProgressFn = Callable[[int, int, str], None]
"""Called with (done, total, note) as work goes on; `note` is short, such as "loss 1.42"."""


def silent(done: int, total: int, note: str) -> None:
    """Show nothing: the default of every stage called as a library."""
