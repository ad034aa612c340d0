"""What is about to run, as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from data.device import Cuda, cuda_devices
from data.errors import ClipScgiError
from data.people import is_junk
from data.stages.stage import RunContext
from flows.recipes import ScaleConfig
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig

Ints = NDArray[np.int64]


class IndexRows(NamedTuple):
    """Columns of images.parquet, [N] each, without junk."""

    split: NDArray[np.object_]
    pid: Ints
    camid: Ints

    def of(self, *splits: str) -> IndexRows:
        """Return the rows of some splits."""
        chosen = np.isin(self.split.astype(str), splits)
        return IndexRows(self.split[chosen], self.pid[chosen], self.camid[chosen])


class LazyCuda:
    """``torch.cuda`` for checks that may not need it: a run that finds all artifacts does not load torch."""

    def is_available(self) -> bool:
        """Return True if CUDA works here."""
        return self.device_count() > 0

    def device_count(self) -> int:
        """Return the number of CUDA devices that can be used."""
        import torch

        return cuda_devices(torch.cuda)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is about to run.

    run: its images are not known before the index. stages: those that will run because they have no artifact yet.
    """

    run: RunContext
    caption: CaptionConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    scale: ScaleConfig
    stages: frozenset[str]
    cuda: Cuda = field(default_factory=LazyCuda)

    @cached_property
    def rows(self) -> IndexRows:
        """The indexed images."""
        table = self.run.images.rows("split", "pid", "camid")
        split, pid, camid = (table[name].to_numpy() for name in table.column_names)
        kept = ~is_junk(pid)
        return IndexRows(split[kept], pid[kept], camid[kept])


Check = Callable[[Plan], Iterator[str]]
"""Yields problems of a plan, or notices about it."""


def message_of(work: Callable[[], object]) -> Iterator[str]:
    """Yield the message of the ClipScgiError that `work` raises, if it raises one."""
    try:
        work()
    except ClipScgiError as error:
        yield str(error)
