"""Work that takes longer than an answer may: one thread does it, a piece at a time, and pages ask how far it is.

One thread also means that one model is loaded at a time, and that no two pieces compete for a GPU.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from data.errors import ClipScgiError

_KEPT: Final = 256

Tell = Callable[[str], None]
"""Receives one sentence about what is being done now."""


@dataclass(kw_only=True)
class Job:
    """A piece of work. note: what is being done. result: once `done`. problem: one sentence if it failed."""

    key: str
    note: str = "Waiting for other work to finish."
    done: bool = False
    result: Any = None
    problem: str = ""

    @property
    def ended(self) -> bool:
        """True once there is a result or a problem."""
        return self.done or bool(self.problem)


class Workshop:
    """Jobs by key; a key that was asked for before is not done again, unless it failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: queue.SimpleQueue[tuple[Job, Callable[[Tell], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, key: str, work: Callable[[Tell], Any]) -> Job:
        """Return the job of `key`; start it unless it exists."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.problem:
                job = self._jobs[key] = Job(key=key)
                self._waiting.put((job, work))
                self._start()
            self._jobs.move_to_end(key)
            while len(self._jobs) > _KEPT and next(iter(self._jobs.values())).ended:
                self._jobs.popitem(last=False)
            return job

    def find(self, key: str) -> Job | None:
        """Return the job of `key` if it was asked for."""
        with self._lock:
            return self._jobs.get(key)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="workshop", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            job, work = self._waiting.get()

            def tell(note: str, job: Job = job) -> None:
                job.note = note

            try:
                job.result = work(tell)
                job.done = True
            except ClipScgiError as error:
                job.problem = str(error)
            except Exception as error:  # the page has to say that it failed, whatever it was
                job.problem = f"This failed ({type(error).__name__}: {error})."
