"""Whole training, loader included, at ViT-B/16 size: images per second, and the share of the device's matrix rate.

    python benchmarks/bench_training.py [--steps N] [--peer FOLDER]

It runs the trainer on the GPU if there is one, else on the CPU, in bf16 (float32 where bf16 is emulated), on a decoded
cache of random pixels, and measures the second of two epochs. The matrix rate is that of a large product in the same
format, measured in the same run; the operations of a step are counted by torch. Target on an H200: at least 40 % of the
matrix rate.

FOLDER is a checkout of github.com/Syliz517/CLIP-ReID, whose second stage is then trained on as many JPEG files
(benchmarks/clip_reid_loop.py). Target on an H200: ours is 3 x as fast.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matrix_rate import DEVICE, ON_GPU, device_name, has_bf16, matrix_rate
from torch.utils.flop_counter import FlopCounterMode

from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.inputs.batches import TrainingBatches, TrainingSet
from reid.tasks.build import build_task
from reid.training.trainer import fit

IDENTITIES, IMAGES = (16 if ON_GPU else 4), 4
"""Of a batch. The dataset has as many identities, so an epoch takes one step per group of IMAGES images of each."""
STEPS = 200 if ON_GPU else 4
PLAN: dict[str, Any] = {
    "backbone": {"name": "vit_b16", "weights": "random", "height": 256, "width": 128},
    "batch": {"identities": IDENTITIES, "images": IMAGES},
    "schedule": {"epochs": 2, "warmup_epochs": 0, "milestones": []},
    "checkpoint_every": 0,
}


def random_people(folder: Path, config: BackboneConfig, steps: int) -> TrainingSet:
    """Return training images of random pixels in a memory-mapped file, and random caption features."""
    rng = np.random.default_rng(0)
    count = IDENTITIES * IMAGES * steps
    path = folder / "pixels.npy"
    np.save(path, rng.integers(0, 256, (count, config.height, config.width, 3), dtype=np.uint8))
    return TrainingSet(
        pixels=np.load(path, mmap_mode="r"),
        positions_N=np.arange(count),
        labels_N=np.repeat(np.arange(IDENTITIES), IMAGES * steps),
        cameras_N=np.zeros(count, np.int64),
        caption_rows_N=np.arange(count),
        captions_MD=rng.standard_normal((count, 512), dtype=np.float32),
    )


def operations(config: TrainConfig, data: TrainingSet) -> float:
    """Return the operations of one step, forward and backward, per image."""
    task = build_task(config, identities=IDENTITIES).to(DEVICE).train()
    batches = TrainingBatches(data, config, task.preprocess, device=torch.device(DEVICE))
    (batch,) = next(batches.groups(0, 0))
    with FlopCounterMode(display=False) as counter:
        task.total(task(batch)).backward()
    return counter.get_total_flops() / len(batch.labels_B)


def images_per_second(config: TrainConfig, data: TrainingSet, folder: Path) -> float:
    """Train two epochs and return the speed of the second."""
    fit(build_task(config, identities=IDENTITIES), data, config, folder=folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float([row["images_per_second"] for row in rows if row["kind"] == "epoch"][1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps per epoch")
    parser.add_argument("--peer", type=Path, help="a checkout of Syliz517/CLIP-ReID")
    given = parser.parse_args()
    bf16, speeds = has_bf16(), {}
    rate = matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    print(f"{device_name()}: {'bf16' if bf16 else 'float32'} matrix product {rate / 1e12:.2f} TFLOP/s")
    for method in ("clip_baseline", "clip_reid", "clip_scgi"):
        config = TrainConfig.model_validate({**PLAN, "method": method, "precision": "bf16" if bf16 else "no"})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            whole = random_people(folder, config.backbone, given.steps)
            need = operations(config, whole)
            speed = speeds[method] = images_per_second(config, whole, folder / "run")
        print(
            f"{method:14s} {speed:8.1f} images/s   {need / 1e9:5.1f} GFLOP per image   "
            f"{speed * need / rate:5.0%} of the matrix rate" + ("   (target >= 40 % on an H200)" if ON_GPU else "")
        )
    if given.peer:
        from clip_reid_loop import WORKERS, peer_images_per_second

        peer = peer_images_per_second(given.peer, identities=IDENTITIES, images=IMAGES, steps=given.steps)
        print(
            f"public CLIP-ReID, second stage, {WORKERS} loader processes, {'fp16' if ON_GPU else 'float32'}: "
            f"{peer:.1f} images/s; ours {speeds['clip_reid'] / peer:.2f} x   (target >= 3 on an H200)"
        )


if __name__ == "__main__":
    main()
