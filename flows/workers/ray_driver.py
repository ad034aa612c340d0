"""The process that runs one job on a Ray cluster, in place of the command: if the cluster is lost, it may end at once.

    python -m flows.workers.ray_driver JOB.json MOST

`flows.workers.ray_run` starts it, and starts it again when the cluster is back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from data.errors import ClipScgiError, ConfigError
from data.files import write_json
from data.process.locks import lock
from flows.execution.child import write_problem
from flows.interrupts import STATUS, check, stop_on_terminate
from flows.workers.jobs import Job, read_job
from flows.workers.local import MARK
from flows.workers.ray_pool import Pool, PoolOutcome
from flows.workers.ray_run import OUTCOME
from flows.workers.ray_worker import Probe, versions

_ROOT: Final = Path(__file__).parents[2]
_SHIPPED: Final = ("captioning", "data", "flows", "reid")


def tell(**values: Any) -> None:
    """Write a line for the command that started this process."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


def connect() -> Any:
    """Return the module ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine."""
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address=address,
            logging_level=logging.WARNING,
            # The code of this command, so that nodes need only the packages that it imports.
            runtime_env={"py_modules": [str(_ROOT / name) for name in _SHIPPED], "excludes": ["__pycache__"]},
            **local,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: {' '.join(str(error).split())}. Start Ray on this machine too (`ray start "
            "--address=HOST:6379`), or unset RAY_ADDRESS to use this machine alone"
        ) from error
    return ray


@contextmanager
def probing(job: Job) -> Iterator[Probe]:
    """Yield what every node must have, with a locked file in the artifact root while the block runs."""
    path, token = Path(job.home) / "work" / f"probe-{secrets.token_hex(8)}", secrets.token_hex(16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(token)
    try:
        with lock(path):
            needed = {name: Path(name).stat().st_size for name in job.needed()}
            yield Probe(str(path), token, needed, versions())
    finally:
        path.unlink(missing_ok=True)


def run(job: Job, most: int) -> PoolOutcome:
    """Run `job` on the cluster with up to `most` workers."""
    ray = connect()
    tell(connected=True)

    def progress(done: int, total: int, note: str) -> None:
        check()
        tell(done=done, total=total, note=note)

    try:
        with probing(job) as probe:
            return Pool(ray, job, probe, most=most, progress=progress).run()
    finally:
        ray.shutdown()


def main(path: Path, most: int) -> None:
    """Run the job at `path`, and write its outcome or its problem beside it."""
    from ray.exceptions import RayError

    stop_on_terminate()
    try:
        outcome = run(read_job(path.read_text()), most)
    except KeyboardInterrupt:
        sys.exit(STATUS)
    except ClipScgiError as error:
        write_problem(path, error)
        sys.exit(1)
    except RayError as error:  # the cluster is lost: no problem for the user yet
        sys.exit(f"{type(error).__name__}: {error}")
    except Exception as error:
        write_problem(path, ClipScgiError(f"{type(error).__name__}: {error}"))
        raise
    write_json(path.with_name(OUTCOME), {**asdict(outcome), "nodes": sorted(outcome.nodes)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
