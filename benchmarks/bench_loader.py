"""Augmented training images per second and core, from the decoded cache.

    python benchmarks/bench_loader.py [height width]

It writes a temporary cache of random pixels, draws P x K batches, reads them from the memory map, augments and
normalizes them, all on one thread. Target: at least 1,500 images of 256 x 128 per second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reid.config.train import AugmentConfig
from reid.inputs.augment import augment, draw_plan
from reid.inputs.loading import load_batches
from reid.inputs.sampler import IdentitySampler

PEOPLE, EACH, REPEATS = 200, 16, 5


def main(height: int, width: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    config = AugmentConfig()
    generator = torch.Generator().manual_seed(0)
    sampler = IdentitySampler(np.repeat(np.arange(PEOPLE), EACH), identities=16, images=4, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        rng = np.random.default_rng(0)
        np.save(path, rng.integers(0, 256, (PEOPLE * EACH, height, width, 3), dtype=np.uint8))
        pixels = np.load(path, mmap_mode="r")
        best_wall, best_cpu = np.inf, np.inf
        for epoch in range(REPEATS):
            wall, cpu = time.perf_counter(), time.process_time()
            for batch in load_batches(pixels, sampler.batches(epoch), "cpu"):
                plan = draw_plan(len(batch), height, width, config, generator)
                augment(batch, plan, config, mean=(0.5,) * 3, std=(0.5,) * 3)
            best_wall = min(best_wall, time.perf_counter() - wall)
            best_cpu = min(best_cpu, time.process_time() - cpu)
    images = len(sampler) * sampler.batch_size
    print(
        f"{height} x {width}: {images / best_cpu:,.0f} augmented images per CPU second "
        f"({images / best_wall:,.0f} per wall second, one augmenting thread, one reading ahead)"
    )


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (256, 128)))
