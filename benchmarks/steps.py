"""Time and peak memory of steps as their input grows, each in a process of its own: shared by benchmarks of scale."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """Wall seconds of a step, CPU seconds of its process, and the peak memory of its process in MB."""

    seconds: float
    cpu: float
    peak: float


def measure(step: Callable[..., None], *arguments: Any) -> Measured:
    """Run a step in a new process: a function at the top of a module. Imports are part of its memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(step, arguments, sender))
    child.start()
    sender.close()
    try:
        found: Measured = receiver.recv()
    except EOFError:
        raise SystemExit(f"{step.__name__} failed") from None
    finally:
        child.join()
    return found


def _measured(
    step: Callable[..., None], arguments: tuple[Any, ...], sender: multiprocessing.connection.Connection
) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    step(*arguments)
    sender.send(Measured(time.perf_counter() - started, time.process_time() - cpu, _peak()))


def _peak() -> float:
    """Return the peak memory of this process in MB; `ru_maxrss` can be that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def line_of(step: str, rows: int, found: Measured) -> str:
    """Return the line of a step in the table."""
    rate = f"{rows / found.seconds:12,.0f} rows/s"
    return f"{step:18s} {rows:10,d} {found.seconds:9.1f} s {found.cpu:9.1f} s of CPU {found.peak:7,.0f} MB {rate}"


def print_slopes(tables: Mapping[int, Mapping[str, Measured]]) -> None:
    """Print for each step the slope of log(CPU seconds) over log(rows) between its smallest and its largest size."""
    for step in dict.fromkeys(step for table in tables.values() for step in table):
        sizes = sorted(rows for rows, table in tables.items() if step in table)
        if len(sizes) > 1:
            small, large = sizes[0], sizes[-1]
            slope = math.log(tables[large][step].cpu / tables[small][step].cpu) / math.log(large / small)
            print(f"{step:18s} slope {slope:5.2f} from {small:,} to {large:,}")
