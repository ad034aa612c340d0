"""Batches of cached pixels on a device, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.process.read_ahead import map_ahead

_AHEAD = 2


def load_batches(
    pixels: NDArray[np.uint8], batches: Iterable[NDArray[np.int64]], device: torch.device | str
) -> Iterator[Tensor]:
    """Yield uint8 images [B, 3, H, W] on `device` for each batch of positions in `pixels` [N, H, W, 3].

    One thread reads up to two batches in advance (copying from the memory map releases the interpreter lock),
    so disk and model work in parallel. The tensors keep the memory order of the cache (permuted [B, H, W, 3]).
    """
    pinned = torch.device(device).type == "cuda"

    def read(indices: NDArray[np.int64]) -> Tensor:
        batch = torch.from_numpy(pixels[indices])
        return batch.pin_memory() if pinned else batch

    with closing(map_ahead(read, batches, threads=1, ahead=_AHEAD)) as loaded:
        for batch in loaded:
            yield batch.to(device, non_blocking=True).permute(0, 3, 1, 2)
