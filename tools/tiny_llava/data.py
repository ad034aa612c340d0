"""Training data of the tiny LLaVA: the endless synthetic stream in a growing pool of decoded images.

Rendering a person takes longer than a training step on it, so worker processes render people into a memory-mapped pool
while training already reads from it. Augmentation varies an image every time it is used.

Shape legend: B batch, H and W pixels of a crop, S slots.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from data.slots import SLOTS
from tools.tiny_llava.model import IMAGE_SIZE
from tools.tiny_llava.render import HEIGHT, WIDTH, Rendered, render

log = logging.getLogger(__name__)

CHUNK: Final = 500
"""Images that a worker renders at a time. Every chunk has its own stream seed, and therefore its own cameras."""
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images uint8 [B, 3, H, W], labels int64 [B, S] and parts uint8 [B, 1, H / 2, W / 2]."""

    images: torch.Tensor
    labels: torch.Tensor
    parts: torch.Tensor


class Pool:
    """The rendered images, of which the first `ready` rows are filled.

    images: uint8 [N, H, W, 3]. labels: class index of each slot [N, S]. parts: body part at every second pixel, uint8
    [N, H / 2, W / 2]. A folder with some chunks is continued. capacity: rounded down to whole chunks; a smaller pool is
    one chunk.
    """

    def __init__(self, folder: Path, *, seed: int, capacity: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.chunk = min(CHUNK, capacity)
        self.capacity = capacity // self.chunk * self.chunk

        def mapped(name: str, kind: type, *shape: int) -> np.memmap:
            path = folder / f"{name}-{seed}-{self.capacity}.bin"
            return np.memmap(path, kind, "r+" if path.exists() else "w+", shape=shape)

        self.images = mapped("images", np.uint8, self.capacity, HEIGHT, WIDTH, 3)
        self.labels = mapped("labels", np.int8, self.capacity, len(SLOTS))
        self.parts = mapped("parts", np.uint8, self.capacity, HEIGHT // 2, WIDTH // 2)
        # One mark per filled chunk; chunks are filled in order.
        self._marks = mapped("marks", np.uint8, self.capacity // self.chunk)

    @property
    def ready(self) -> int:
        """Number of images that can be read."""
        return int(self._marks.sum()) * self.chunk

    def fill_in_background(self, workers: int) -> threading.Thread:
        """Start rendering the missing images in `workers` processes; the thread ends when the pool is full."""
        thread = threading.Thread(target=self._fill, args=(workers,), daemon=True)
        thread.start()
        return thread

    def _fill(self, workers: int) -> None:
        chunks = range(self.ready // self.chunk, len(self._marks))
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=os.nice, initargs=(5,)) as executor:
            waiting: list[tuple[int, Future[Rendered]]] = []
            for chunk in chunks:
                waiting.append((chunk, executor.submit(render, self.seed + chunk, self.chunk)))
                if len(waiting) > 2 * workers:  # limits the rendered images in memory
                    self._store(*waiting.pop(0))
            for entry in waiting:
                self._store(*entry)
        log.info("pool full: %d images", self.ready)

    def _store(self, chunk: int, future: Future[Rendered]) -> None:
        rows = slice(chunk * self.chunk, (chunk + 1) * self.chunk)
        self.images[rows], self.labels[rows], self.parts[rows] = future.result()
        self._marks[chunk] = 1

    def batch(self, size: int, rng: np.random.Generator) -> Batch:
        """Return `size` random images."""
        return self.take(np.sort(rng.integers(self.ready, size=size)))

    def take(self, rows: np.ndarray | slice) -> Batch:
        """Return the given rows."""
        return Batch(
            images=torch.from_numpy(np.ascontiguousarray(self.images[rows].transpose(0, 3, 1, 2))),
            labels=torch.from_numpy(self.labels[rows].astype(np.int64)),
            parts=torch.from_numpy(np.array(self.parts[rows])).unsqueeze(1),
        )


def normalize(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Return float32 pixels, normalized as by the CLIP image processor; the mean color becomes 0."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (images_B3HW.float() / 255.0 - mean) / std


def augment(batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return crops and parts, flipped, shifted and scaled together; the crops also vary in light and color.

    Crops are normalized float32 [B, 3, H, W]; parts int64 [B, H / 4, W / 4], one point every 4 pixels.
    """
    size = len(batch.images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(size, *shape, generator=generator) * (high - low) + low

    flip = (torch.rand(size, generator=generator) < 0.5).float() * 2 - 1
    theta = torch.zeros(size, 2, 3)
    theta[:, 0, 0] = uniform(0.85, 1.1) * flip
    theta[:, 1, 1] = uniform(0.92, 1.06)
    theta[:, 0, 2] = uniform(-0.12, 0.12)
    theta[:, 1, 2] = uniform(-0.05, 0.05)
    grid = F.affine_grid(theta, list(batch.images.shape), align_corners=False)
    pixels = F.grid_sample(batch.images.float() / 255.0, grid, padding_mode="border", align_corners=False)
    points = F.affine_grid(theta, [size, 1, HEIGHT // 4, WIDTH // 4], align_corners=False)
    parts = F.grid_sample(batch.parts.float(), points, mode="nearest", align_corners=False)
    gray = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - gray) * uniform(0.85, 1.15, 1, 1, 1) + gray * uniform(0.85, 1.15, 1, 1, 1)
    pixels = pixels * uniform(0.96, 1.04, 3, 1, 1)
    pixels = pixels + torch.randn(pixels.shape, generator=generator) * uniform(0.0, 0.025, 1, 1, 1)
    return normalize(pixels.clamp(0, 1) * 255.0), parts.squeeze(1).long()


def frame(pixels_B3HW: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Pad normalized crops to the square with the mean color (0), [B, 3, 128, 128].

    With a `generator`, half of the batches are first resized to another width, like crops of another shape.
    """
    width = WIDTH
    if generator is not None and torch.rand((), generator=generator) < 0.5:
        width = int(torch.randint(22, 42, (), generator=generator)) * 2
        pixels_B3HW = F.interpolate(pixels_B3HW, size=(HEIGHT, width), mode="bilinear", antialias=True)
    side = (IMAGE_SIZE - width) // 2
    return F.pad(pixels_B3HW, (side, side, 0, 0))
