"""Tracking of a training with MLflow: parameters, metrics, and artifacts as tags with fingerprint and path.

Nothing but `train.tracking` and `train.tracking_uri` decides where a run is recorded. A server that fails is reported
once and tried again later; it never stops a training. Imports MLflow when the first run is recorded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from data.errors import ConfigError, DataError
from data.files import read_json, write_json
from reid.config.train import TrainConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT: Final = "clip-scgi"
DATABASE: Final = "mlflow.db"
"""File in the artifact root that records runs unless train.tracking_uri names another store."""
RECORD_FILE: Final = "tracking.json"
"""File in the folder of a training that names its MLflow run, so that a resumed training continues it."""
Status = Literal["FINISHED", "FAILED", "KILLED"]
Kind = Literal["step", "epoch", "eval"]
Position = tuple[int, int]
"""Step and kind of a line of the log; lines are written in this order, also by a resumed training."""

_ORDER: Final[dict[Kind, int]] = {"step": 0, "epoch": 1, "eval": 2}
_LOG = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 60.0
_BUFFER: Final = 500
"""Metrics that are collected before they are sent, unless an epoch ends first."""
_BATCH: Final = 1000  # of metrics; MLflow takes no more at once
_PARAMETERS: Final = 100  # of parameters or tags at once
# Used only for a server that the settings name. A secret must not be a setting: config.json would contain it.
_CREDENTIALS: Final = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
_SET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # the first use of a database would print its tables
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow refuses folders (file:///...) without it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What MLflow shows of a training besides its metrics. uri: the store. parameters: setting -> value."""

    uri: str
    name: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]


class Number(NamedTuple):
    """One value of a metric. time: milliseconds since the epoch."""

    name: str
    value: float
    time: int
    step: int


def parameters_of(config: TrainConfig) -> dict[str, str]:
    """Return the settings that can change the result, as dotted key -> text."""
    plain, kept = config.model_dump(mode="json"), config.identity()
    return dict(_flat({name: value for name, value in plain.items() if name in kept}, "train"))


def _flat(values: Mapping[str, Any], group: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{group}.{name}")
        else:
            yield f"{group}.{name}", value if isinstance(value, str) else json.dumps(value)


class MlflowTracker:
    """Records one training as an MLflow run.

    folder: of the training; the run is named in a file there. A training that continues in this folder continues the
    run, and sends nothing twice.
    """

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        """Raise ConfigError if MLflow is not installed. Sends nothing yet."""
        if find_spec("mlflow") is None:
            raise ConfigError(
                "train.tracking=mlflow is not installed: pip install 'clip-scgi[mlflow]', or set train.tracking=none"
            )
        self._run, self._record = run, folder / RECORD_FILE
        self._run_id, self._sent = self._recorded()
        self._client: MlflowClient | None = None
        self._waiting: list[Number] = []
        self._last = self._sent
        self._retry_at = 0.0
        self._warned = False

    def write(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one line of the log, as kind/name."""
        position = (step, _ORDER[kind])
        if position <= self._sent:
            return
        now = time.time_ns() // 1_000_000
        self._waiting += [Number(f"{kind}/{name}", float(value), now, step) for name, value in values.items()]
        self._last = position
        if kind != "step" or len(self._waiting) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting, unless the server failed less than a minute ago."""
        if self._waiting and time.monotonic() >= self._retry_at:
            self._try(self._send)

    def close(self, status: Status) -> None:
        """Send what is waiting and end the run."""
        if self._retry_at and status != "FINISHED":
            return  # the server failed: let the program end at once
        if not self._try(lambda: self._end(status)):
            _LOG.warning("MLflow: the last %d numbers of this training are not recorded", len(self._waiting))

    def recorded(self) -> dict[str, Any]:
        """Return where the run is, and how many of its numbers are missing there; {} if it could not be created."""
        return {"uri": self._run.uri, "run_id": self._run_id, "missing": len(self._waiting)} if self._run_id else {}

    def _recorded(self) -> tuple[str, Position]:
        """Return the run that an earlier process recorded in the same store, and the last line that it sent."""
        nothing = "", (-1, -1)
        try:
            found = read_json(self._record)
            if found["uri"] != self._run.uri:
                return nothing
            step, kind = found["sent"]
            return str(found["run_id"]), (int(step), int(kind))
        except (OSError, DataError, KeyError, TypeError, ValueError):
            return nothing

    def _try(self, action: Any) -> bool:
        """Run `action` and return True; if it fails, warn once and return False."""
        try:
            with _isolated():
                action()
        except Exception as error:  # of MLflow, its HTTP client, its database or the disk
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            if not self._warned:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                _LOG.warning(
                    "MLflow cannot record this training (%s). The training goes on and tries again every minute; set "
                    "train.tracking_uri to a store that works, or train.tracking=none",
                    reason,
                )
            self._warned = True
            return False
        self._retry_at = 0.0
        return True

    def _send(self) -> None:
        client = self._started()
        from mlflow.entities import Metric

        while self._waiting:
            batch = [Metric(*number) for number in self._waiting[:_BATCH]]
            client.log_batch(self._run_id, metrics=batch, synchronous=True)
            del self._waiting[:_BATCH]
        self._sent = self._last
        self._write_record()

    def _end(self, status: Status) -> None:
        self._send()
        self._started().set_terminated(self._run_id, status)

    def _started(self) -> MlflowClient:
        """Return the client, after the run has been created or continued."""
        if self._client is not None:
            return self._client
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._run.uri)
        if not self._run_id or not _continued(client, self._run_id):
            self._run_id = self._created(client)
            self._write_record()
        self._client = client
        return client

    def _created(self, client: MlflowClient) -> str:
        from mlflow.entities import Param, RunTag

        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = (
            found.experiment_id if found else client.create_experiment(EXPERIMENT, _artifacts_of(self._run.uri))
        )
        run_id = client.create_run(experiment, run_name=self._run.name).info.run_id
        parameters = [Param(name, value) for name, value in self._run.parameters.items()]
        for start in range(0, len(parameters), _PARAMETERS):
            client.log_batch(run_id, params=parameters[start : start + _PARAMETERS], synchronous=True)
        tags = [RunTag(name, value) for name, value in self._run.tags.items()]
        client.log_batch(run_id, tags=tags, synchronous=True)
        return str(run_id)

    def _write_record(self) -> None:
        write_json(self._record, {"uri": self._run.uri, "run_id": self._run_id, "sent": list(self._sent)})


def _artifacts_of(uri: str) -> str | None:
    """Return the address for files of runs: beside a database, where MLflow would name the working directory.

    Nothing is written there. None: the store decides.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns").as_uri()


def _continued(client: MlflowClient, run_id: str) -> bool:
    """Mark an earlier run as running and return True; False if somebody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return False
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


@contextmanager
def _isolated() -> Iterator[None]:
    """Hide MLflow's environment variables, except credentials, and turn its telemetry off while the block runs."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name in _SET or (name.lstrip("_").startswith("MLFLOW_") and name not in _CREDENTIALS)
    }
    for name in hidden:
        del os.environ[name]
    os.environ.update(_SET)
    try:
        yield
    finally:
        for name in _SET:
            os.environ.pop(name, None)
        os.environ.update(hidden)
