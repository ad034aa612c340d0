"""Computations that may never end, such as a user's regular expression, in a child process with limits.

A module answers requests if it calls `serve` when it is run as a script; `bounded` runs it. Both speak JSON.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_MEMORY: Final = 2 << 30  # bytes
_STOPPED: Final = (-signal.SIGXCPU, -signal.SIGKILL)


class TimeLimitError(Exception):
    """A computation took more processor time than it was given."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"it does not end within {seconds} s")


def bounded(module: str, request: Any, *, seconds: int) -> Any:
    """Return the answer of `module` to `request`. Raises TimeLimitError after `seconds` of processor time.

    The wall clock does not count, so a busy machine gives the same answer.
    """
    # -P: do not import modules from the working directory.
    command = [sys.executable, "-P", "-m", module, str(seconds)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, encoding="ascii", env=environment, check=False
    )
    if done.returncode in _STOPPED:
        raise TimeLimitError(seconds)
    if done.returncode:
        raise RuntimeError(f"{module} failed with status {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer one request as the child process of `bounded`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    seconds, request = int(sys.argv[1]), json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    until = seconds + math.ceil(time.process_time())  # the start of Python and the imports are not the request's
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
    json.dump(answer(request), sys.stdout)
