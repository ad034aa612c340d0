"""Processes for tests that kill them or let them compete."""

from __future__ import annotations

import multiprocessing
import time

# Not forked from this process: tests before these may have filled it with threads and servers.
FORK_SERVER = multiprocessing.get_context("forkserver")


def join_all(processes):
    for process in processes:
        process.join(60)
        assert process.exitcode is not None, "a process hangs"


def _set_and_run(running, target, *args):
    running.set()
    target(*args)


def run_and_kill(target, *args, after):
    """Run `target` in a process and kill it `after` seconds into its work."""
    running = FORK_SERVER.Event()
    process = FORK_SERVER.Process(target=_set_and_run, args=(running, target, *args))
    process.start()
    assert running.wait(60)
    time.sleep(after)
    process.kill()
    process.join()
