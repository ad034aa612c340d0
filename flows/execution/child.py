"""A program of this project in a process of its own: its output is passed on, and its error is raised here.

The program writes an error that the user has to fix to `PROBLEM` beside its job file, because its output may be mixed
with that of other processes.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from data.errors import ClipScgiError, RetryableError
from data.files import read_json, write_json

PROBLEM: Final = "problem.json"
_LAST_LINES: Final = 80  # torchrun alone prints thirty at its end
_LOG = logging.getLogger(__name__)


def _pass_on(line: str) -> None:
    sys.stderr.write(line)
    _LOG.info(line.rstrip())


def stream(
    command: list[str],
    environment: Mapping[str, str],
    *,
    taken: Callable[[str], bool] = lambda line: False,
    grace: float = 0.0,
) -> tuple[int, str]:
    """Run `command`, print its lines as they arrive, and return its status and its last lines.

    taken: called with every line; returns True for a line that is not to be printed. grace: seconds that the program
    has to end after SIGTERM if this process stops; 0 kills it at once.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        env=dict(environment),
        start_new_session=True,  # this process stops the program, not the terminal
    ) as running:
        try:
            for line in running.stdout or ():
                if not taken(line):
                    last.append(line)
                    _pass_on(line)
        except BaseException:
            _end(running, grace)
            raise
    return running.returncode, "".join(last)


def _end(running: subprocess.Popen[str], grace: float) -> None:
    """End the program and the processes that it has started, each of which may be in its own session."""
    family = [*psutil.Process(running.pid).children(recursive=True), running]
    if grace:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(grace)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def raise_problem(job: Path) -> None:
    """Raise the error that a process has written for the job file `job`, if any."""
    path = job.with_name(PROBLEM)
    if path.exists():
        problem = read_json(path)
        raise (RetryableError if problem["retry"] else ClipScgiError)(problem["message"])


def write_problem(job: Path, error: ClipScgiError) -> None:
    """Write an error of the job file `job`, for `raise_problem`."""
    write_json(job.with_name(PROBLEM), {"message": str(error), "retry": isinstance(error, RetryableError)})
