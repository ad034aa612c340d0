"""Training in several processes of `accelerate launch`, started by a task, which streams their output.

Each process runs the train stage on one job:

    python -m flows.execution.launch JOB.json

The first process writes the artifact; the task then finds it in the store.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import psutil

from data.artifacts.store import ArtifactRef, ArtifactStore
from data.config import build_config
from data.errors import ClipScgiError, ConfigError
from data.files import read_json, write_json
from data.process.children import follow
from data.process.environment import own_environment
from data.stages.images import IndexedImages
from data.stages.stage import RunContext
from flows.execution.child import raise_problem, stream, write_problem
from flows.recipes import ScaleConfig
from flows.terminal import progress_bar
from reid.config.train import TrainConfig
from reid.training.stage import TrainStage
from reid.training.together import train_together

_JOB: Final = "job.json"
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


def launch_training(stage: TrainStage, run: RunContext, scale: ScaleConfig) -> None:
    """Train with `scale.train_processes` processes on this machine, together with those of other machines if any.

    Raises the error of one of the processes, or their last lines.
    """
    job = {
        "home": str(run.store.root),
        "images": run.images.to_json(),
        "captions": stage.captions.to_json() if stage.captions else None,
        "config": stage.config.model_dump(mode="json"),
    }
    environment = {"OMP_NUM_THREADS": "1", **_network(scale), **own_environment()}
    with tempfile.TemporaryDirectory(prefix="clip-scgi-") as folder:
        path = Path(folder) / _JOB
        write_json(path, job)
        command = [sys.executable, "-m", "data.process.children", str(os.getpid()), *launcher(Path(folder), scale)]
        status, lines = stream([*command, "-m", "flows.execution.launch", str(path)], environment)
        raise_problem(path)
    if status:
        where = f" on machine {scale.train_machine} of {scale.train_machines}" if scale.train_machines > 1 else ""
        raise ClipScgiError(
            f"training in {scale.train_processes} processes{where} ended with status {status}; its last lines:\n{lines}"
        )


def launcher(folder: Path, scale: ScaleConfig) -> list[str]:
    """Return the module and arguments that start the processes of this machine; write their config into `folder`."""
    path = folder / "accelerate.json"
    write_json(path, {**_LAUNCH_CONFIG, **_meeting(scale), "num_processes": scale.trainers})
    return [*_LAUNCH, str(path), "--dynamo_backend", "no"]


def _meeting(scale: ScaleConfig) -> dict[str, Any]:
    """Return the settings of accelerate by which several machines find each other; empty for one machine."""
    if scale.train_machines == 1:
        return {}
    host, _, port = scale.train_address.rpartition(":")
    return {
        "num_machines": scale.train_machines,
        "machine_rank": scale.train_machine,
        "main_process_ip": host,
        "main_process_port": int(port),
        "rdzv_backend": "static",
        "same_network": True,
    }


def _network(scale: ScaleConfig) -> dict[str, str]:
    """Return the variables by which gloo and NCCL use the network of `scale.train_address`; empty for one machine.

    By default they use the address of the host name, which is 127.0.0.1 on many machines. Raises ConfigError if this is
    machine 0 and does not have that address, or if the address cannot be reached from here.
    """
    if scale.train_machines == 1:
        return {}
    host, _, port = scale.train_address.rpartition(":")
    key = f"scale.train_address={scale.train_address}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # sends nothing
            here, there = probe.getsockname()[0], probe.getpeername()[0]
        if scale.train_machine == 0:
            with socket.create_server((there, int(port))):
                pass
    except OSError as error:
        reason = "cannot be used on this machine" if scale.train_machine == 0 else "cannot be reached from here"
        raise ConfigError(
            f"{key} {reason} ({error.strerror or error}): give an address of machine 0 that all machines reach, with a "
            "free port; scale.train_machine=0 belongs on that machine"
        ) from error
    name = "lo" if here.startswith("127.") else _interface_with(here)
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name} if name else {}


def _interface_with(address: str) -> str:
    """Return the name of the network interface that has an address, or ""."""
    found = (name for name, its in psutil.net_if_addrs().items() if address in {each.address for each in its})
    return next(found, "")


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
        write_problem(path, error)
        sys.exit(f"clip-scgi: {error}")
    torch.distributed.destroy_process_group()
    # os._exit, because the shutdown of the interpreter aborts while threads of the process group are ending.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
