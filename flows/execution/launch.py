"""Training in several processes of `accelerate launch`, started by a task, which streams their output.

Each process runs the train stage on one job:

    python -m flows.execution.launch JOB.json

The first process writes the artifact; the task then finds it in the store.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.config import build_config
from data.errors import ClipScgiError, RetryableError
from data.files import read_json, write_json
from data.process.children import follow
from data.process.environment import own_environment
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.terminal import progress_bar
from reid.config.train import TrainConfig
from reid.training.stage import TrainStage
from reid.training.together import train_together

_JOB: Final = "job.json"
_PROBLEM: Final = "problem.json"
_LAST_LINES: Final = 80  # torchrun alone prints thirty at its end
_LAUNCH: Final = ("accelerate.commands.launch", "--config_file")
# Passed as a file, because accelerate would otherwise read the user's default_config.yaml.
_LAUNCH_CONFIG: Final = {
    "compute_environment": "LOCAL_MACHINE",
    # Selects the torchrun launcher, also for CPUs; "use_cpu" would start only one process there.
    "distributed_type": "MULTI_GPU",
    "use_cpu": False,
    "mixed_precision": "no",
    "num_machines": 1,
    "machine_rank": 0,
    # 0: torchrun chooses a free port, so that two trainings on one machine do not collide.
    "main_process_port": 0,
}


def launch_training(stage: TrainStage, run: RunContext, *, processes: int) -> None:
    """Train with `processes` processes on this machine. Raises the error of one of them, or their last lines."""
    job = {
        "home": str(run.store.root),
        "images": run.images.to_json(),
        "captions": stage.captions.to_json() if stage.captions else None,
        "config": stage.config.model_dump(mode="json"),
    }
    with tempfile.TemporaryDirectory(prefix="clip-scgi-") as folder:
        path = Path(folder) / _JOB
        write_json(path, job)
        command = [sys.executable, "-m", "data.process.children", str(os.getpid()), *launcher(Path(folder), processes)]
        status, lines = _stream([*command, "-m", "flows.execution.launch", str(path)])
        _raise_problem(path.with_name(_PROBLEM))
    if status:
        raise ClipScgiError(f"training in {processes} processes ended with status {status}; its last lines:\n{lines}")


def launcher(folder: Path, processes: int) -> list[str]:
    """Return the module and arguments that start `processes` processes; write their config into `folder`."""
    path = folder / "accelerate.json"
    write_json(path, {**_LAUNCH_CONFIG, "num_processes": processes})
    return [*_LAUNCH, str(path), "--dynamo_backend", "no"]


def _raise_problem(path: Path) -> None:
    """Raise the error that one of the processes has written to `path`, if any."""
    if path.exists():
        problem = read_json(path)
        raise (RetryableError if problem["retry"] else ClipScgiError)(problem["message"])


def _stream(command: list[str]) -> tuple[int, str]:
    """Run `command`, print its lines as they arrive, and return its status and its last lines."""
    log = logging.getLogger(__name__)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    environment = {"OMP_NUM_THREADS": "1", **own_environment()}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env=environment,
        start_new_session=True,  # this process stops the launcher, not the terminal
    ) as running:
        try:
            for line in running.stdout or ():
                last.append(line)
                sys.stderr.write(line)
                log.info(line.rstrip())
        except BaseException:
            _end(running)
            raise
    return running.returncode, "".join(last)


def _end(running: subprocess.Popen[str]) -> None:
    """Kill the launcher and the processes that it has started, each of which is in its own session."""
    family = [*psutil.Process(running.pid).children(recursive=True), running]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def main(path: Path) -> None:
    """Run the train stage on the job at `path`, as one of several processes."""
    follow(os.getppid())
    import torch.distributed  # not at the top: a cached run does not load torch

    job: dict[str, Any] = read_json(path)
    try:
        with progress_bar("train") as progress:
            train_together(
                TrainStage(
                    captions=ArtifactRef(**job["captions"]) if job["captions"] else None,
                    config=build_config(TrainConfig, job["config"], "training job"),
                    launched=True,
                ),
                RunContext(
                    store=ArtifactStore(Path(job["home"])),
                    progress=progress,
                    indexed=IndexedImages.from_json(job["images"]),
                ),
            )
    except ClipScgiError as error:
        # Passed in a file, because the output of several processes is mixed and ends with lines of torchrun.
        write_json(path.with_name(_PROBLEM), {"message": str(error), "retry": isinstance(error, RetryableError)})
        sys.exit(f"clip-scgi: {error}")
    torch.distributed.destroy_process_group()
    # os._exit, because the shutdown of the interpreter aborts while threads of the process group are ending.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
