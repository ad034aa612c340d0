"""Training batches: augmented images with their labels, cameras and caption features.

Everything random is a function of (seed, epoch, batch), so a resumed run continues with exactly the next batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.config.train import TrainConfig
from reid.inputs.augment import augment, draw_plan
from reid.inputs.loading import load_batches
from reid.inputs.sampler import IdentitySampler
from reid.tasks.base import Batch, Preprocess

# Separates the random stream of augmentation from the sampler's, which is also seeded by (seed, epoch).
_AUGMENT_STREAM: Final = 1


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Decoded training images with their labels, cameras and caption features."""

    pixels: NDArray[np.uint8]
    """[M, H, W, 3]; may contain other images too, and may be a memory map."""
    positions_N: NDArray[np.int64]
    """Row of each training image in `pixels`."""
    labels_N: NDArray[np.int64]
    """Class number of each training image's identity, 0 .. identities - 1."""
    cameras_N: NDArray[np.int64]
    """Camera number of each training image, 0 .. cameras - 1."""
    caption_rows_N: NDArray[np.int64] | None = None
    """Row of each training image's caption in `captions_MD`."""
    captions_MD: NDArray[np.float32] | None = None
    """Text features of the distinct captions; may be a memory map."""


class TrainingBatches:
    """The batches of every epoch, on a device. With several processes, each gets its part of every batch.

    Args:
        data: the training set.
        config: the run; only its batch, augmentation and seed are used.
        preprocess: the preprocessing of the model.
        device: the device of the batches.
        rank, world: this process and the number of processes.

    Raises:
        ConfigError: the training set has fewer identities than a batch needs.
    """

    def __init__(
        self,
        data: TrainingSet,
        config: TrainConfig,
        preprocess: Preprocess,
        *,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._data, self._config, self._preprocess, self._device, self._rank = data, config, preprocess, device, rank
        batch = config.batch
        self._sampler = IdentitySampler(
            data.labels_N,
            identities=batch.identities,
            images=batch.images,
            seed=config.seed,
            rank=rank,
            world=world,
        )

    @property
    def batch_size(self) -> int:
        """Images per batch, over all processes."""
        return self._sampler.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(len(self._sampler) / self._config.batch.accumulate)

    def groups(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """Yield the batches of `epoch` from number `start` on, `accumulate` at a time: one group per step."""
        batches = self._batches(epoch, start)
        while group := list(islice(batches, self._config.batch.accumulate)):
            yield group

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        chosen = list(self._sampler.batches(epoch, start))
        pixels = load_batches(self._data.pixels, (self._data.positions_N[items] for items in chosen), self._device)
        for number, (items, images_BCHW) in enumerate(zip(chosen, pixels, strict=True), start=start):
            yield self._batch(items, self._augmented(images_BCHW, epoch, number))

    def _augmented(self, images_BCHW: Tensor, epoch: int, number: int) -> Tensor:
        config = self._config
        seed = np.random.SeedSequence([config.seed, epoch, number, _AUGMENT_STREAM]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(seed))
        height, width = images_BCHW.shape[2:]
        plan = draw_plan(self.batch_size, height, width, config.augment, generator)
        first = self._rank * len(images_BCHW)
        return augment(
            images_BCHW,
            plan.slice(first, first + len(images_BCHW)),
            config.augment,
            mean=self._preprocess.mean,
            std=self._preprocess.std,
        )

    def _batch(self, items: NDArray[np.int64], images_BCHW: Tensor) -> Batch:
        data, device = self._data, self._device
        captions = None
        if data.captions_MD is not None and data.caption_rows_N is not None:
            captions = torch.from_numpy(np.asarray(data.captions_MD[data.caption_rows_N[items]])).to(device)
        return Batch(
            images_BCHW=images_BCHW,
            labels_B=torch.from_numpy(data.labels_N[items]).to(device),
            items_B=torch.from_numpy(items).to(device),
            cameras_B=torch.from_numpy(data.cameras_N[items]).to(device),
            captions_BD=captions,
        )
