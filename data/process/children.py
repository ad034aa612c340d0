"""Child processes: they end with their parent, however it ends, and Ctrl-C on a terminal is left to the parent.

    python -m data.process.children PARENT MODULE [ARGUMENT ...]

runs a module that follows the process PARENT.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOOK_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 10.0


@contextmanager
def shielded() -> Iterator[None]:
    """Block Ctrl-C for the processes and threads started in the block; their parent ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(parent: int) -> None:
    """Watch `parent`, the process that started this one: once it is gone, end with SIGTERM, after 10 s with SIGKILL."""
    threading.Thread(target=_watch, args=(parent,), name="follow-parent", daemon=True).start()


def _watch(parent: int) -> None:
    # An orphan is given another parent at once, so its parent's id cannot be taken by another process unseen.
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main(words: list[str]) -> None:
    """Follow the process `words[0]` and run the module `words[1]` on the arguments after it."""
    parent, module, *arguments = words
    follow(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
