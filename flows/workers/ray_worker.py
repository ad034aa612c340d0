"""The worker of a job on a node of a Ray cluster, and the check of that node. Ray loads this module on every node."""

from __future__ import annotations

import os
import platform
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

from data.errors import ClipScgiError, RetryableError
from data.process.locks import try_lock

PACKAGES: Final = (
    "accelerate",
    "bitsandbytes",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
"""Packages that can change a result, or that read what another node has written."""


class Shown(NamedTuple):
    """Progress of a worker, as `data.progress` reports it."""

    done: int
    total: int
    note: str


class Ended(NamedTuple):
    """The end of a worker. done: images that it has done. problem: its error, "" if everything is done."""

    done: int
    problem: str = ""
    retry: bool = False
    stopped: bool = False


class Worker:
    """An actor that works on one job. `work` runs in one thread, `shown` and `stop` in others."""

    def __init__(self, job: str) -> None:
        from flows.workers.jobs import read_job

        self._job = read_job(job)
        self._shown = Shown(0, 0, "starting")
        self._stop = threading.Event()

    def work(self, device: str) -> Ended:
        """Work until nothing is left, or until `stop`."""
        try:
            return Ended(self._job.work(self._report, device))
        except KeyboardInterrupt:
            return Ended(0, stopped=True)
        except ClipScgiError as error:
            return Ended(0, str(error), isinstance(error, RetryableError))

    def shown(self) -> Shown:
        """Return the progress so far."""
        return self._shown

    def stop(self) -> None:
        """Let `work` save what it has and return."""
        self._stop.set()

    def _report(self, done: int, total: int, note: str) -> None:
        self._shown = Shown(done, total, note)
        if self._stop.is_set():
            raise KeyboardInterrupt


class Probe(NamedTuple):
    """What a node must have. file: a locked file in the artifact root, with the content `token`. needed: path -> size
    of files. versions: of Python and `PACKAGES` on the machine of the command."""

    file: str
    token: str
    needed: dict[str, int]
    versions: dict[str, str]


class Inspected(NamedTuple):
    """The result of a probe. problems: the node cannot work. notices: it can."""

    problems: list[str]
    notices: list[str]


def versions() -> dict[str, str]:
    """Return the versions of Python and `PACKAGES` here; "" for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def inspect(probe: Probe) -> Inspected:
    """Check this node: the artifact root, the images and the model under the same paths, and the same versions."""
    problems, notices = [], []
    root = Path(probe.file).parents[1]
    try:
        if Path(probe.file).read_text() != probe.token:
            problems.append(f"the artifact root {root} is another folder there; mount the same one under this path")
        elif not os.access(Path(probe.file).parent, os.W_OK):
            problems.append(f"the artifact root {root} cannot be written there by the user {os.getuid()}")
        elif (held := try_lock(Path(probe.file))) is not None:
            held.close()
            notices.append(
                f"file locks do not reach it from here ({root}): two nodes may do the same work, which costs time; "
                "use NFS 4, CephFS or Lustre with -o flock"
            )
    except OSError:
        problems.append(f"the artifact root {root} does not exist there; mount the same folder under this path")
    absent = [path for path, size in probe.needed.items() if _size(path) != size]
    if absent:
        problems.append(f"{absent[0]} is absent or another file there; mount the same folder under this path")
    return Inspected([*problems, *_differences(probe.versions, versions())], notices)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _differences(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """Return one problem about the versions that differ, if any."""
    found = [
        f"{name} {there[name] or 'is not installed'} instead of {here[name] or 'none'}"
        for name in here
        if here[name] != there[name]
    ]
    listed = ", ".join(found)
    return [f"other versions: {listed}; install the same ones there"] if found else []
