"""What people see in the terminal: the table of results, one line a stage, and progress that also suits a log file."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import humanize
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from data.progress import ProgressFn
from flows.interrupts import check
from flows.report.intervals import METHOD, MIN_QUERIES
from flows.report.scores import METRICS, Score, duration, scores, signed

LOG_INTERVAL: Final = 5.0
"""Seconds between two progress lines where the output is no terminal."""


def size(n_bytes: float) -> str:
    """Return a number of bytes as text, such as "12.3 MB"."""
    return re.sub(r" Bytes?$", " B", humanize.naturalsize(n_bytes))


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: brackets and colons of a path mean nothing to it."""
    return Console(stderr=stderr, markup=False, emoji=False)


def results_table(metrics: Mapping[str, Any], rankings: Path | None = None) -> Table:
    """Return metrics.json as a table: one row per model and inference mode, in percent, trained rows with their gain.

    rankings: rankings.parquet of the same evaluation, which the intervals of the gains come from.
    """
    protocol = metrics["protocol"]
    version = f" ({protocol['version']})" if protocol["version"] else ""
    sizes = f"{protocol['n_query']:,} queries, {protocol['n_gallery']:,} gallery images"
    title = Text(f"{protocol['dataset']}{version}: {sizes}")
    rows = scores(metrics, rankings)
    table = Table(
        title=title,
        caption=_caption(rows, ranked=rankings is not None),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # room for the intervals on a terminal of 64 columns
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    for _, label in METRICS:
        table.add_column(label, justify="right", overflow="fold")
    for row in rows:
        style = "" if row.model == "untrained" else "bold"
        table.add_row(Text(row.model, style), Text(row.mode, style), *(_cell(row, key, style) for key, _ in METRICS))
    return table


def _caption(rows: list[Score], *, ranked: bool) -> str | None:
    """Return what the points below the figures are; ranked: intervals were looked for."""
    if not any(row.points for row in rows):
        return None
    caption = "percent; below it the points gained over the untrained model"
    others = sorted({f"{row.mode} against {row.against}" for row in rows if row.against not in (None, row.mode)})
    if others:
        caption += f" ({', '.join(others)} mode)"
    if any(row.intervals for row in rows):
        return f"{caption}, with the {METHOD}; colored only where it excludes zero"
    return f"{caption}; no interval: drawn galleries, or fewer than {MIN_QUERIES} queries" if ranked else caption


def _cell(row: Score, key: str, style: str) -> Text:
    text = Text(f"{row.percent[key]:.1f}", style)
    if key in row.spread:
        text.append(f" ± {row.spread[key]:.1f}")
    if row.points is not None:
        color = {"up": "green", "down": "red"}.get(row.verdict(key), "dim")
        text.append(f"\n{signed(row.points[key])}", color)
        if row.intervals is not None:
            text.append(f"\n{row.interval(key)}", color)
    return text


def notice_line(notice: str) -> Text:
    """Return one line about something in the data set that a person should know, such as counts that are not right."""
    return Text().append("! ", "yellow").append(notice)


def stage_line(stage: str, status: Literal["cached", "ran"], seconds: float, note: str, reason: str = "") -> Text:
    """Return one line about a finished stage, such as ``✓ caption   ran      12.3 s  800 captions generated``.

    reason: why it ran; shown behind the note.
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

    The callback raises KeyboardInterrupt once the command is being stopped, in whichever thread it is called.

    console: where to write; standard error by default. clock: seconds, monotonic.
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
    """Tell that something takes seconds and cannot be counted: a spinner on a terminal, else one line at its start.

    console: where to write; standard error by default.
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
    """A `ProgressFn` for log files: a line at most every `interval` seconds, with the time left.

    The speed is that since the first call, so what an earlier run had done does not count as done now.
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
