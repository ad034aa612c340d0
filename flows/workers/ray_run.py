"""Run a job on a Ray cluster, in a process of its own that is started again if the cluster was lost and comes back."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from data.errors import ClipScgiError, ConfigError
from data.files import read_json
from data.process.environment import own_environment
from data.progress import ProgressFn
from flows.execution.child import PROBLEM, raise_problem, stream
from flows.recipes import ScaleConfig
from flows.terminal import notice_line, plain_console
from flows.workers.jobs import Job
from flows.workers.local import MARK

OUTCOME: Final = "outcome.json"
"""File beside the job, with the fields of `RayOutcome`."""
_STOP_SECONDS: Final = 7.0
_RETRY_SECONDS: Final = 2.0
_LOSSES: Final = 5  # in a row, without an image done between them
VARIABLE: Final = "RAY_ADDRESS"


class RayOutcome(NamedTuple):
    """The outcome of a job. done: images done by the workers that ended in order. lost: workers that died.

    losses: how often the whole cluster was lost; the other numbers are those since it was back.
    """

    done: int
    workers: int
    lost: int
    nodes: list[str]
    losses: int = 0

    def note(self, done: str) -> str:
        """Return the outcome in words. done: what was done, such as "captions generated"."""
        least = "at least " if self.lost or self.losses else ""
        lost = f", {self.lost} lost" if self.lost else ""
        back = ", after the cluster was lost and came back" if self.losses else ""
        return f"{least}{self.done} {done} by {self.workers} workers (ray){lost}{back}"


def ray_problems() -> list[str]:
    """Return why Ray cannot be used here: it is not installed, or RAY_ADDRESS cannot be reached."""
    if find_spec("ray") is None:
        return ["scale.runner=ray is not installed: pip install 'clip-scgi[ray]', or set scale.runner=processes"]
    address = os.environ.get(VARIABLE, "")
    if "://" in address:
        return [
            f"{VARIABLE}={address}: the Ray client is not supported; run this command on a node of the cluster with "
            f"{VARIABLE}=HOST:6379, or submit it with `ray job submit`"
        ]
    if ":" in address and not _answers(address):
        return [f"{VARIABLE}={address}: nothing answers there; start it with `ray start --head`, or unset {VARIABLE}"]
    return []


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except (OSError, ValueError):
        return False


class _Told:
    """What the driver has told. connected: when, at last. done: images. lost: how often the cluster was lost,
    losses: without an image done since."""

    def __init__(self, progress: ProgressFn) -> None:
        self._progress = progress
        self.connected: float | None = None
        self.done = self.losses = self.lost = 0

    def take(self, line: str) -> bool:
        """Read a line; return True if it is one for this process."""
        if not line.startswith(MARK):
            return False
        self.connected = time.monotonic()
        told = json.loads(line[1:])
        if "done" in told:
            self.losses = 0 if told["done"] > self.done else self.losses
            self.done = told["done"]
            self._progress(told["done"], told["total"], told["note"])
        return True


def run_on_ray(job: Job, scale: ScaleConfig, workers: int, progress: ProgressFn) -> RayOutcome:
    """Run `job` with up to `workers` workers (0: as many as fit), and return when nothing is left of it.

    If the cluster is lost, wait up to `scale.ray_wait` seconds until it is back, and go on there.

    Raises:
        ConfigError: Ray is not installed or not reachable, or a node cannot work (`flows.workers.ray_worker.inspect`).
        ClipScgiError: the error of a worker, or the cluster did not come back.
    """
    for problem in ray_problems():
        raise ConfigError(problem)
    if ":" in job.device:
        raise ConfigError(
            f"{job.setting}={job.device}: Ray selects the GPU of a worker; set {job.setting}=cuda or auto"
        )
    told = _Told(progress)
    with tempfile.TemporaryDirectory(prefix="clip-scgi-") as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json())
        command = [sys.executable, "-m", "data.process.children", str(os.getpid()), "flows.workers.ray_driver"]
        while True:
            begun = time.monotonic()
            status, lines = stream(
                [*command, str(path), str(workers)], driver_environment(), taken=told.take, grace=_STOP_SECONDS
            )
            if status == 0:
                return RayOutcome(**read_json(path.with_name(OUTCOME)), losses=told.lost)
            if told.connected is None or told.connected >= begun:
                raise_problem(path)
            path.with_name(PROBLEM).unlink(missing_ok=True)
            if told.connected is None:
                raise ClipScgiError(f"Ray ended with status {status}; the last lines:\n{lines}")
            _wait_for_cluster(told, scale, lines, progress)


def driver_environment() -> dict[str, str]:
    """Return the environment of the process that runs a job.

    If it starts Ray on this machine alone, Ray accepts only this process and its workers, because its ports listen on
    all addresses, and it sends no statistics of its use. Ray reads these variables when it is imported.
    """
    kept = own_environment()
    if os.environ.get(VARIABLE, "") in ("", "local"):
        kept |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    return kept


def _wait_for_cluster(told: _Told, scale: ScaleConfig, lines: str, progress: ProgressFn) -> None:
    """Wait until the cluster answers. Raises ClipScgiError if it is gone for too long, or was lost too often."""
    address, lost = os.environ.get(VARIABLE) or "local", told.connected or 0.0
    told.losses += 1
    told.lost += 1
    if told.losses == 1:
        text = f"the Ray cluster at {address} is lost; waiting until it is back (scale.ray_wait={scale.ray_wait})"
        plain_console(stderr=True).print(notice_line(text), soft_wrap=True)
    while time.monotonic() - lost < scale.ray_wait and told.losses <= _LOSSES:
        progress(told.done, 0, "waiting for the Ray cluster")
        time.sleep(_RETRY_SECONDS)
        if ":" not in address or _answers(address):
            return
    raise ClipScgiError(
        f"the Ray cluster at {VARIABLE}={address} was lost and did not come back within scale.ray_wait="
        f"{scale.ray_wait} seconds; start it and run the same command again, which continues. Its last lines:\n{lines}"
    )
