"""The log of a training run: metrics.jsonl, one JSON object per line; on request TensorBoard and MLflow.

{"kind": "step", "epoch", "step", "loss", "terms": {name: value}, "lr": {group: rate}}     every log_every steps
{"kind": "epoch", "epoch", "step", "loss", "terms" (means), "seconds", "images_per_second"}
    fp16 adds "loss_scale", which each skipped step halves and 2,000 steps in a row without one double
{"kind": "eval", "epoch", "step", "mAP", "mINP", "rank1", "seconds"}     after the epochs that are evaluated

Epochs count from 0 and steps from 1. TensorBoard and MLflow show every number as kind/name or kind/name/key,
at its step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reid.training.tracking import Kind, MlflowTracker, Status

METRICS_FILE: Final = "metrics.jsonl"
Value = float | Mapping[str, float]


class MetricsLog:
    """Log of a run: lines in the file at `path`, and scalars in a TensorBoard folder and an MLflow run if given.

    Only the main process of a distributed run (`main`) writes.
    """

    def __init__(self, path: Path, tensorboard: str, *, main: bool, tracker: MlflowTracker | None = None) -> None:
        self._path, self._main = path, main
        self._tracker = tracker if main else None
        self._writer: Any = None
        if tensorboard and main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(tensorboard)

    def truncate(self, size: int) -> None:
        """Drop what was written after the checkpoint that training continues from."""
        if self._main:
            with self._path.open("ab") as stream:
                stream.truncate(size)

    def size(self) -> int:
        """Return the number of bytes written so far."""
        return self._path.stat().st_size if self._main else 0

    def write(self, kind: Kind, *, epoch: int, step: int, **values: Value) -> None:
        """Append one line."""
        if not self._main:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            line = {"kind": kind, "epoch": epoch, "step": step, **values}
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in _scalars(values):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        if self._tracker is not None:
            self._tracker.write(kind, step, dict(_scalars(values)))

    def flush(self) -> None:
        """Send to MLflow what is waiting."""
        if self._tracker is not None:
            self._tracker.flush()

    def close(self, status: Status = "FINISHED") -> None:
        """Flush TensorBoard and end the MLflow run."""
        if self._writer is not None:
            self._writer.close()
        if self._tracker is not None:
            self._tracker.close(status)


def _scalars(values: Mapping[str, Value]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line, those in a group as "group/name"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        else:
            yield name, value
