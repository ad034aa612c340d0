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
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from matrix_rate import DEVICE, ON_GPU, device_name, has_bf16, matrix_rate
from torch.utils.flop_counter import FlopCounterMode

from reid.config.backbone import RANDOM, BackboneConfig
from reid.config.train import Method, TrainConfig
from reid.inputs.batches import TrainingBatches, TrainingSet
from reid.tasks.build import build_task
from reid.training.trainer import fit

Backbone = Literal["tiny", "vit_b16", "rn50"]
JOINT_WIDTHS: dict[Backbone, int] = {"tiny": 128, "vit_b16": 512, "rn50": 1024}
"""Length of a caption feature."""
IDENTITIES, IMAGES = (16 if ON_GPU else 4), 4
STEPS = 200 if ON_GPU else 4


def speed_config(method: Method, precision: str, backbone: BackboneConfig, identities: int, images: int) -> TrainConfig:
    """Return the settings of a run of two epochs with random weights, without checkpoints."""
    plan: dict[str, Any] = {
        "method": method,
        "precision": precision,
        "backbone": backbone.model_copy(update={"weights": RANDOM}),
        "batch": {"identities": identities, "images": images},
        "schedule": {"epochs": 2, "warmup_epochs": 0, "milestones": []},
        "checkpoint_every": 0,
        "log_every": 1,
    }
    return TrainConfig.model_validate(plan)


def random_people(folder: Path, config: TrainConfig, steps: int) -> TrainingSet:
    """Return training images of random pixels in a memory-mapped file, and random caption features.

    The dataset has as many identities as a batch, so an epoch takes `steps` batches.
    """
    rng = np.random.default_rng(0)
    batch, backbone = config.batch, config.backbone
    count = batch.identities * batch.images * steps
    path = folder / f"pixels-{count}.npy"
    if not path.exists():
        np.save(path, rng.integers(0, 256, (count, backbone.height, backbone.width, 3), dtype=np.uint8))
    return TrainingSet(
        pixels=np.load(path, mmap_mode="r"),
        positions_N=np.arange(count),
        labels_N=np.repeat(np.arange(batch.identities), batch.images * steps),
        cameras_N=np.zeros(count, np.int64),
        caption_rows_N=np.arange(count),
        captions_MD=rng.standard_normal((count, JOINT_WIDTHS[backbone.name]), dtype=np.float32),
    )


def operations(config: TrainConfig, data: TrainingSet) -> float:
    """Return the operations of one step, forward and backward, per image."""
    task = build_task(config, identities=config.batch.identities).to(DEVICE).train()
    batches = TrainingBatches(data, config, task.preprocess, device=torch.device(DEVICE))
    (batch,) = next(batches.groups(0, 0))
    with FlopCounterMode(display=False) as counter:
        task.total(task(batch)).backward()
    return counter.get_total_flops() / len(batch.labels_B)


def images_per_second(config: TrainConfig, data: TrainingSet, folder: Path) -> float:
    """Train two epochs and return the speed of the second, by the clock: the wait for the loader counts."""
    ended: list[float] = []

    def progress(done: int, total: int, note: str) -> None:
        ended.append(time.perf_counter())

    fit(build_task(config, identities=config.batch.identities), data, config, folder=folder, progress=progress)
    steps = len(ended) // 2
    return steps * config.batch.identities * config.batch.images / (ended[-1] - ended[steps - 1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps per epoch")
    parser.add_argument("--peer", type=Path, help="a checkout of Syliz517/CLIP-ReID")
    given = parser.parse_args()
    bf16, speeds = has_bf16(), {}
    rate = matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    print(f"{device_name()}: {'bf16' if bf16 else 'float32'} matrix product {rate / 1e12:.2f} TFLOP/s")
    shape = BackboneConfig(name="vit_b16", weights=RANDOM, height=256, width=128)
    for method in reversed(get_args(Method)):
        config = speed_config(method, "bf16" if bf16 else "no", shape, IDENTITIES, IMAGES)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            whole = random_people(folder, config, given.steps)
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
