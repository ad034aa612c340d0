"""Ctrl-C and SIGTERM: print a line at once, end in order, and exit hard if that takes too long.

A separate thread reads the signals, because Python's handlers wait while the main thread is inside C code, such as a
training step. The main thread unwinds by KeyboardInterrupt, other threads by `check`, which progress callbacks call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import psutil

STATUS: Final = 130
"""Exit status of a command that a signal has stopped."""
GRACE_SECONDS: Final = 9.0
"""Time limit of an orderly end."""
_CHILD_SECONDS: Final = 5.0
_SAME_SECONDS: Final = 0.5  # `timeout` sends its signal twice, and so does Prefect
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPING: Final = "stopping; finished work is kept (press Ctrl-C again to stop at once)"
_ENDED: Final = "interrupted; run the same command again to continue where it stopped"

_stopping = threading.Event()
_announcing = threading.Lock()
_announced = threading.Event()


def stopping() -> bool:
    """Return True once a signal has asked the command to stop."""
    return _stopping.is_set()


def check() -> None:
    """Raise KeyboardInterrupt if the command is being stopped; for threads, which do not receive signals."""
    if _stopping.is_set():
        raise KeyboardInterrupt


def stop_on_terminate() -> None:
    """Let SIGTERM stop this child process at its next `check` instead of at once, so that it saves its work."""
    signal.signal(signal.SIGTERM, lambda *_: _stopping.set())


@contextmanager
def watched() -> Iterator[None]:
    """Handle signals during the block, which is the whole command. After a signal, the process ends with the block.

    A signal that is ignored stays ignored (`nohup`). Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    former_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, _Raise()) for number in wanted}
    threading.Thread(target=_listen, args=(receiver,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        if _stopping.is_set():
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            _announce()
            end(_ENDED, patience=_CHILD_SECONDS)
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_fd)
        sender.close()


def leave_to_asyncio() -> None:
    """Let asyncio cancel its main task on Ctrl-C, which it does only with Python's default handler."""
    if threading.current_thread() is threading.main_thread() and isinstance(signal.getsignal(signal.SIGINT), _Raise):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def left_to_server() -> Iterator[None]:
    """Leave signals to a server that handles them itself, and for which Ctrl-C is the normal end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former, warn_on_full_buffer=False)


class _Raise:
    """A signal handler that raises KeyboardInterrupt in the main thread, but only once: clean-up is not interrupted."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _Raise.done:
            _Raise.done = True
            _stopping.set()
            raise KeyboardInterrupt

    done = False


def _listen(receiver: socket.socket) -> None:
    """Print a line and start the time limit on the first signal, and end on a later Ctrl-C. Return at end of file."""
    first: float | None = None
    while received := receiver.recv(64):
        if not set(received) & set(_SIGNALS):
            continue
        now = time.monotonic()
        if first is None:
            first = now
            _stopping.set()
            _announce()
            threading.Thread(target=_limit, name="interrupt-limit", daemon=True).start()
        elif signal.SIGINT in received and now - first > _SAME_SECONDS:
            end("stopped at once; run the same command again to continue")
    receiver.close()


def _announce() -> None:
    """Print that the command stops, once and before any other message."""
    with _announcing:
        if not _announced.is_set():
            say(_STOPPING)
        _announced.set()


def _limit() -> NoReturn:
    time.sleep(GRACE_SECONDS)
    end(_ENDED)


def say(text: str) -> None:
    """Write one line to standard error, replacing a progress bar; ignore a closed terminal."""
    # sys.stderr is avoided, because the main thread may hold its lock.
    clear = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{clear}clip-scgi: {text}\n".encode())


def end(text: str, *, patience: float = 0.0) -> NoReturn:
    """End every child process and then this one, whatever its threads are doing, and print `text`.

    patience: seconds that the children have to end after SIGTERM before they are killed; 0 kills them at once.
    """
    _end_children(patience)
    say(text)
    os._exit(STATUS)


def _end_children(patience: float) -> None:
    import psutil  # imported late, because a signal may arrive while it loads

    try:
        children = psutil.Process().children(recursive=True)
    except psutil.Error:
        return
    if patience:
        # For example, a served run reports to Prefect's server that it was stopped.
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.terminate()
        # Python's resource tracker ignores SIGTERM and ends after this process.
        waited = [child for child in children if not _is_tracker(child)]
        _, children = psutil.wait_procs(waited, timeout=patience)
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()


def _is_tracker(process: psutil.Process) -> bool:
    import psutil

    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False
