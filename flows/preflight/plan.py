"""What is about to run, as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from captioning.config import CaptionConfig
from captioning.corrections.current import Current
from captioning.corrections.store import Corrections
from captioning.engines.server_probe import ServerAnswer, ask_server
from data.columns.records import Records
from data.datasets import DatasetConfig
from data.device import Cuda, cuda_devices
from data.errors import ClipScgiError, messages_of
from data.people import is_junk
from data.stages.stage import RunContext
from flows.preflight.machine import Memory, Processor, machine_memory, this_processor
from flows.recipes import ScaleConfig
from reid.config.evaluate import EvaluateConfig
from reid.config.train import TrainConfig
from reid.inputs.image_rows import read_labels

Ints = NDArray[np.int64]


class IndexRows(NamedTuple):
    """Columns of images.parquet, [N] each, without junk."""

    split: NDArray[np.object_]
    pid: Ints
    camid: Ints

    def of(self, *splits: str) -> IndexRows:
        """Return the rows of some splits."""
        chosen = np.logical_or.reduce([self.split == split for split in splits])
        return IndexRows(self.split[chosen], self.pid[chosen], self.camid[chosen])


def listed_rows(records: Records) -> IndexRows:
    """Return the rows of a listed folder, for a dataset that cannot be indexed yet."""
    return _without_junk(records.split_names(), records.pids, records.camids)


def _without_junk(split: NDArray[np.object_], pid: Ints, camid: Ints) -> IndexRows:
    kept = ~is_junk(pid)
    return IndexRows(split[kept], pid[kept], camid[kept])


class Gpus(Cuda, Protocol):
    """The part of ``torch.cuda`` that the checks use. number: of the device, counted from 0."""

    def memory(self, number: int) -> Memory:
        """Return the memory of a GPU."""

    def computes_bf16(self, number: int) -> bool:
        """Return True if a GPU has bf16 instructions."""


class LazyCuda:
    """``torch.cuda`` for checks that may not need it: a run that finds all artifacts does not load torch."""

    def memory(self, number: int) -> Memory:
        """Return the memory of a GPU."""
        import torch

        return Memory(*torch.cuda.mem_get_info(number))

    def computes_bf16(self, number: int) -> bool:
        """Return True if a GPU has bf16 instructions (Ampere or newer)."""
        import torch

        return torch.cuda.get_device_capability(number) >= (8, 0)

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
    listed: rows of the dataset's folder if it could be listed, but not indexed.
    """

    run: RunContext
    caption: CaptionConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    scale: ScaleConfig
    stages: frozenset[str]
    data: DatasetConfig = field(default_factory=DatasetConfig)
    listed: IndexRows | None = None
    cuda: Gpus = field(default_factory=LazyCuda)
    processor: Processor = field(default_factory=this_processor)
    ram: Callable[[], Memory] = machine_memory

    @cached_property
    def server(self) -> ServerAnswer:
        """The answer of the captioning server, asked once."""
        return ask_server(self.caption)

    @cached_property
    def corrections(self) -> Current:
        """The corrections of the indexed images, without resets. Raises DataError if their file is damaged."""
        current = Corrections.open(self.run.store.root, self.caption.template).current()
        return current.without_resets().among([self.run.images.sha256()])

    @property
    def is_indexed(self) -> bool:
        """Whether the images are indexed."""
        return self.run.indexed is not None

    @property
    def has_rows(self) -> bool:
        """Whether the images are known, at least from a listing of their folder."""
        return self.is_indexed or self.listed is not None

    @cached_property
    def rows(self) -> IndexRows:
        """The images: indexed, or else listed, or else none."""
        if not self.is_indexed:
            return listed_rows(Records.of([])) if self.listed is None else self.listed
        rows = read_labels(self.run.images)
        return _without_junk(rows.split, rows.pid, rows.camid)


Check = Callable[[Plan], Iterator[str]]
"""Yields problems of a plan, or notices about it."""


def message_of(work: Callable[[], object]) -> Iterator[str]:
    """Yield the messages of the ClipScgiError that `work` raises, if it raises one."""
    try:
        work()
    except ClipScgiError as error:
        yield from messages_of(error)
