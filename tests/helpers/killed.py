"""Faults at a chosen operation on files: from there on, no operation has an effect, as if the process were killed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.link", "os.truncate", "os.scandir")
_watcher: list[Callable[[str, str], None]] = []  # of the hook below, which Python cannot remove again


class KilledError(BaseException):
    """No handler of errors takes effect: whatever it does with files raises this again."""


def operations(work: Callable[[], object], folder: Path) -> list[str]:
    """Do `work` and return its operations on files in `folder`, in order."""
    seen: list[str] = []
    _watched(work, folder, seen.append)
    return seen


def die_at(number: int, work: Callable[[], object], folder: Path) -> None:
    """Do `work` until just before its operation `number`, counted from 0, on files in `folder`."""
    left = number

    def count(_: str) -> None:
        nonlocal left
        if left <= 0:
            raise KilledError
        left -= 1

    try:
        _watched(work, folder, count)
    except KilledError:
        return
    raise AssertionError(f"the work has fewer than {number + 1} operations")


def _watched(work: Callable[[], object], folder: Path, report: Callable[[str], None]) -> None:
    if not _watcher:
        _watcher.append(_ignore)
        sys.addaudithook(_hook)

    def watch(event: str, path: str) -> None:
        if path.startswith(str(folder)):
            report(event)

    _watcher[0] = watch
    try:
        work()
    finally:
        _watcher[0] = _ignore


def _ignore(event: str, path: str) -> None:
    """Watch nothing."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _WATCHED and isinstance(arguments[0], str | Path):
        _watcher[0](event, str(arguments[0]))
