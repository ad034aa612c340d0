"""Terminal output: consoles, sizes and time spans, one line per stage, and progress that also suits a log file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

import humanize
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.text import Text

from data.progress import ProgressFn
from flows.interrupts import check

LOG_INTERVAL: Final = 5.0
"""Seconds between two progress lines if the output is not a terminal."""


def size(n_bytes: float) -> str:
    """Return a number of bytes as text, such as "12.3 MB"."""
    return re.sub(r" Bytes?$", " B", humanize.naturalsize(n_bytes))


def duration(seconds: float) -> str:
    """Return a time span as short text: ``0.3 s``, ``48.2 s``, ``4 min 05 s``, ``2 h 13 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text literally: brackets and colons in a path are not markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def notice_line(notice: str) -> Text:
    """Return one line for a notice, such as an unexpected number of images in the dataset."""
    return Text().append("! ", "yellow").append(notice)


def stage_line(stage: str, status: Literal["cached", "ran"], seconds: float, note: str, reason: str = "") -> Text:
    """Return one line for a finished stage, such as ``✓ caption   ran      12.3 s  800 captions generated``.

    reason: why it ran; shown after the note.
    """
    line = Text().append("✓ ", "green")
    line.append(f"{stage:<9} ", "bold")
    line.append(f"{status:<7}", "cyan" if status == "cached" else "")
    line.append(f"{duration(seconds):>10}  ")
    return line.append("; ".join(part for part in (note, reason and f"why: {reason}") if part), "dim")


@contextmanager
def progress_bar(
    stage: str,
    console: Console | None = None,
    *,
    interval: float = LOG_INTERVAL,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressFn]:
    """Yield the progress callback of one stage: a bar on a terminal, else a plain line every `interval` seconds.

    Once the command is being stopped, the callback raises KeyboardInterrupt in the thread that calls it.

    console: standard error by default. clock: seconds, monotonic.
    """
    console = console or plain_console(stderr=True)
    if not console.is_terminal:
        yield _LogLines(stage, console, interval, clock)
        return
    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description:<9}", style="bold"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as bars:
        task = bars.add_task(stage, total=None, note="")

        def show(done: int, total: int, note: str) -> None:
            check()
            bars.update(task, completed=done, total=total, note=note)

        yield show


@contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[None]:
    """Announce something that takes seconds and has no progress: a spinner on a terminal, else one line at its start.

    console: standard error by default.
    """
    console = console or plain_console(stderr=True)
    if console.is_terminal:
        with Live(Spinner("dots", Text(what)), console=console, transient=True) as live:
            live.refresh()
            yield
        return
    console.print(Text(what), soft_wrap=True)
    yield


class _LogLines:
    """A `ProgressFn` for log files: at most one line per `interval` seconds, with the time left.

    The speed is measured from the first call, so that work of an earlier run does not count.
    """

    def __init__(self, stage: str, console: Console, interval: float, clock: Callable[[], float]) -> None:
        self.stage = stage
        self.console = console
        self.interval = interval
        self.clock = clock
        self.written = clock()
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, note: str) -> None:
        check()
        now = self.clock()
        self.first = self.first or (now, done)
        if now - self.written < self.interval:
            return
        self.written = now
        share = f" ({100 * done / total:.0f} %)" if total else ""
        line = f"{self.stage}: {done:,}/{total:,}{share}{self._left(now, done, total)}{f', {note}' if note else ''}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self, now: float, done: int, total: int) -> str:
        since, before = self.first or (now, done)
        if not before < done < total:
            return ""
        return f", about {duration((now - since) / (done - before) * (total - done))} left"
