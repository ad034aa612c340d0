"""Workers of one job on this machine: threads of this process, or processes, each with the next GPU in turn.

    python -m flows.workers.local JOB.json DEVICE

is one of several processes. It tells its progress in marked lines (`MARK`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from data.device import cuda_devices
from data.errors import ClipScgiError
from data.process.environment import own_environment
from data.progress import ProgressFn
from flows.execution.child import raise_problem, stream, write_problem
from flows.execution.gpu import uses_gpu
from flows.interrupts import STATUS, check, stop_on_terminate
from flows.recipes import ScaleConfig
from flows.workers.jobs import Job, read_job

MARK: Final = "\x1e"
"""First character of a line that is for the process that started this one."""
_STOP_SECONDS: Final = 5.0


def run_here(job: Job, scale: ScaleConfig, workers: int, progress: ProgressFn) -> None:
    """Run `job` with `workers` threads or processes of this machine. Raises the error of one of them."""
    with tempfile.TemporaryDirectory(prefix="clip-scgi-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json())
        shown = _Most(progress)

        def thread(number: int) -> None:
            device = device_of(job.device, number, job.setting)
            if scale.runner == "threads":
                job.work(shown, device)
            else:
                _process(path, device, workers, shown)

        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(thread, number) for number in range(workers)]
            for future in futures:
                future.result()


class _Most:
    """The progress of all workers is that of the one that has seen most."""

    def __init__(self, progress: ProgressFn) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, done: int, total: int, note: str) -> None:
        self._done = max(self._done, done)
        self._progress(self._done, total, note)


def _process(path: Path, device: str, workers: int, progress: ProgressFn) -> None:
    """Run one process. It ends with this one, and after the callback has raised KeyboardInterrupt."""
    command = [
        sys.executable,
        "-m",
        "data.process.children",
        str(os.getpid()),
        "flows.workers.local",
        str(path),
        device,
    ]
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    environment = {"OMP_NUM_THREADS": threads, **own_environment()}
    status, lines = stream([*command, str(path), device], environment, taken=taker(progress), grace=_STOP_SECONDS)
    raise_problem(path)
    if status:
        raise ClipScgiError(f"a worker ended with status {status}; its last lines:\n{lines}")


def taker(progress: ProgressFn) -> Callable[[str], bool]:
    """Return a function that takes marked lines out of the output of a worker and reports them."""

    def take(line: str) -> bool:
        if not line.startswith(MARK):
            return False
        progress(*json.loads(line[1:]))
        return True

    return take


def tell(done: int, total: int, note: str) -> None:
    """Report progress to the process that started this one; raise KeyboardInterrupt after SIGTERM."""
    check()
    sys.stdout.write(f"{MARK}{json.dumps([done, total, note])}\n")
    sys.stdout.flush()


def device_of(device: str, worker: int, setting: str) -> str:
    """Return the device of one worker: the next GPU of this machine in turn, unless `device` names one.

    setting: full key of `device`, for messages.
    """
    if device not in ("auto", "cuda") or not uses_gpu(device, setting):
        return device
    import torch

    return f"cuda:{worker % cuda_devices(torch.cuda)}"


def main(path: Path, device: str) -> None:
    """Work on the job at `path`."""
    stop_on_terminate()
    try:
        read_job(path.read_text()).work(tell, device)
    except KeyboardInterrupt:
        sys.exit(STATUS)
    except ClipScgiError as error:
        write_problem(path, error)
        sys.exit(f"clip-scgi: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
