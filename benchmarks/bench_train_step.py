"""One CLIP-SCGI training step at ViT-B/16 size on the CPU, compared with the bare image encoder.

    python benchmarks/bench_train_step.py [--images 16] [--turns 3]

A step is forward, backward and Adam on random weights and data of 256 x 128 pixels, in float32 unless the name says
bf16. The steps run in turns; the least processor time of each counts. Targets, at 16 images: CLIP-SCGI at most 1.10 x
the bare encoder in float32, and at most 0.65 x in bf16 on processors with bf16 instructions. On other processors bf16
is emulated and many times slower, so it is measured only on request (--bf16).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from matrix_rate import has_bf16

from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.models.backbone import build_backbone
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.training.optim import build_optimizer

BACKBONE = BackboneConfig(name="vit_b16", weights="random", height=256, width=128)
IDENTITIES = 751
TARGETS = {"clip_scgi": 1.10, "clip_scgi bf16": 0.65}


def bare_step(count: int) -> Callable[[], None]:
    """Return the step of the image encoder alone."""
    backbone = build_backbone(BACKBONE)
    backbone.freeze_text()
    optimizer = torch.optim.Adam([p for _, p in backbone.image_parameters()], lr=1e-6, fused=True)
    images = torch.randn(count, 3, 256, 128)

    def step() -> None:
        backbone.image(images).joint_BD.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def scgi_step(count: int) -> Callable[[bool], None]:
    """Return the step of CLIP-SCGI; its argument selects bf16."""
    config = TrainConfig(backbone=BACKBONE)
    task = build_task(config, identities=IDENTITIES).train()
    optimizer = build_optimizer(task, config.schedule)
    batch = Batch(
        images_BCHW=torch.randn(count, 3, 256, 128),
        labels_B=torch.arange(count) // 4,
        items_B=torch.arange(count),
        captions_BD=torch.randn(count, 512),
    )

    def step(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = task(batch)
        task.total(terms).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(images: int, turns: int, bf16: bool) -> None:
    """Measure and print."""
    scgi = scgi_step(images)
    steps: dict[str, Callable[[], None]] = {"bare encoder": bare_step(images), "clip_scgi": partial(scgi, False)}
    if bf16:
        steps["clip_scgi bf16"] = partial(scgi, True)
    seconds = dict.fromkeys(steps, float("inf"))
    for turn in range(turns + 1):  # the first warms up
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                seconds[name] = min(seconds[name], time.process_time() - start)
    bare = seconds["bare encoder"]
    print(f"{images} images per step")
    for name, value in seconds.items():
        target = f"   target <= {TARGETS[name]:.2f}" if name in TARGETS else ""
        print(f"{name:16s} {value:7.2f} s of processor time   {value / bare:5.2f} x{target}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="images per step; the targets are for 16")
    parser.add_argument("--turns", type=int, default=3, help="measured steps per method")
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=has_bf16(),
        help="default: where the processor can",
    )
    arguments = parser.parse_args()
    main(arguments.images, arguments.turns, arguments.bf16)
