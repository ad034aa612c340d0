"""Processes for tests that kill them or make them compete."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event

# Not forked from this process: earlier tests may have started threads and servers in it.
FORK_SERVER = multiprocessing.get_context("forkserver")


def preloaded(module: str) -> ForkServerContext:
    """Return a context whose processes begin with `module` imported. A server that runs would import nothing more."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    FORK_SERVER.set_forkserver_preload([module])
    return FORK_SERVER


def join_all(processes: Iterable[ForkServerProcess]) -> None:
    """Wait for all processes; fail if one is still running after a minute."""
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, f"process {process.pid} hangs"


def _set_and_run(running: Event, target: Callable[..., object], *args: object) -> None:
    running.set()
    target(*args)


def run_and_kill(target: Callable[..., object], *args: object, after: float) -> None:
    """Run `target` in a process and kill it `after` seconds into its work."""
    running = FORK_SERVER.Event()
    process = FORK_SERVER.Process(target=_set_and_run, args=(running, target, *args))
    process.start()
    assert running.wait(240)
    time.sleep(after)
    process.kill()
    process.join()
