"""Child processes that end with their parent, however it ends, and leave Ctrl-C on a terminal to it.

    python -m data.process.children PARENT MODULE [ARGUMENT ...]

runs MODULE as a child that ends with the process PARENT.
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

_POLL_SECONDS: Final = 1.0
_GRACE_SECONDS: Final = 10.0


@contextmanager
def shielded() -> Iterator[None]:
    """Block Ctrl-C in the processes and threads started inside; their parent ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(parent: int) -> None:
    """End this process once `parent`, which started it, is gone: with SIGTERM, and with SIGKILL 10 s later."""
    threading.Thread(target=_watch, args=(parent,), name="follow-parent", daemon=True).start()


def _watch(parent: int) -> None:
    # An orphan gets another parent at once, so a new process that reuses the parent's id cannot be mistaken for it.
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> None:
    """Follow the process `argv[0]` and run the module `argv[1]` with the remaining arguments."""
    parent, module, *arguments = argv
    follow(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
