"""The record of a training run: metrics.jsonl, one JSON object a line, and TensorBoard scalars on request.

{"kind": "step", "step", "epoch", "loss", "terms": {name: value}, "lr": {group: rate}}     every log_every steps
{"kind": "epoch", "epoch", "step", "loss", "terms" (means), "seconds", "images_per_second"}
{"kind": "eval", "epoch", "step", "mAP", "mINP", "rank1", "seconds"}     after the epochs that are evaluated

Epochs count from 0 and steps from 1. TensorBoard gets every number under kind/name, or kind/name/key, at its step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

METRICS: Final = "metrics.jsonl"


class MetricsLog:
    """Appends lines to the file at `path`, and scalars to a TensorBoard folder if one is given.

    Only the main process of a distributed run (`main`) writes.
    """

    def __init__(self, path: Path, tensorboard: str, *, main: bool) -> None:
        self._path, self._main = path, main
        self._writer: Any = None
        if tensorboard and main:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(tensorboard)

    def truncate(self, size: int) -> None:
        """Forget what was written after the checkpoint that training goes on from."""
        if self._main:
            with self._path.open("ab") as stream:
                stream.truncate(size)

    def size(self) -> int:
        """Return the bytes written so far."""
        return self._path.stat().st_size if self._main else 0

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        if not self._main:
            return
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in _scalars(line):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._writer is not None:
            self._writer.close()


def _scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line, those in a group as "group/name", its counters left out."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", number) for key, number in value.items())
        elif name not in ("kind", "epoch", "step"):
            yield name, value
