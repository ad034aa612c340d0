"""Images per second of an image encoder: eager torch, torch.compile and onnxruntime, side by side; and of `Embedder`.

    python benchmarks/bench_export.py [tiny | vit_b16] [--turns N]

The encoders get the same normalized noise at the batch sizes 1 and 32, in turns, and the best turn of each counts. The
factors are to eager torch. Before anything is timed, the features are compared. torch.compile needs a C++ compiler;
without one it is left out. The last lines embed drawn people from JPEG files, decoding included, in float32 and bf16.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.synthetic.world import WorldConfig, write_market1501
from reid.config.backbone import BackboneConfig
from reid.config.train import TrainConfig
from reid.embedding.embedder import EmbedConfig, Embedder, Precision
from reid.export.onnx_files import FEATURES, IMAGES, UnitImageEncoder, open_session, write_image_encoder
from reid.tasks.base import Task
from reid.tasks.build import build_task

BATCHES = (1, 32)
MANY = 100_000
Encode = Callable[[Tensor], object]


def encoders(task: Task, folder: Path) -> dict[str, Encode]:
    """Return way -> encoder, after comparing the features of each with eager torch."""
    unit = UnitImageEncoder(task, task.encoders()["image"]).eval()
    write_image_encoder(folder / "image.onnx", task, task.encoders()["image"])
    session = open_session(folder / "image.onnx")
    compiled = torch.compile(unit, dynamic=True)
    ways: dict[str, Encode] = {
        "eager": unit,
        "compile": compiled,
        "onnxruntime": lambda images: session.run([FEATURES], {IMAGES: images.numpy()})[0],
    }
    images = noise(task, 3)
    expected = np.asarray(unit(images))
    for name, encode in list(ways.items()):
        try:
            difference = float(np.abs(np.asarray(encode(images)) - expected).max())
        except Exception as error:  # torch._inductor raises what its compiler says
            print(f"{name} is left out: {str(error).splitlines()[0][:100]}")
            del ways[name]
            continue
        print(f"{name}: differs from eager by {difference:.0e}")
        assert difference < 1e-4, name
    return ways


def noise(task: Task, count: int) -> Tensor:
    """Return normalized noise images."""
    shape = task.preprocess
    return torch.randn(count, 3, shape.height, shape.width, generator=torch.Generator().manual_seed(0))


def rates(ways: dict[str, Encode], images: Tensor, turns: int) -> dict[str, float]:
    """Return way -> images per second of the best turn."""
    repeats = max(1, 32 // len(images))
    best = dict.fromkeys(ways, 0.0)
    for _ in range(turns):
        for name, encode in ways.items():
            start = time.perf_counter()
            for _ in range(repeats):
                encode(images)
            best[name] = max(best[name], repeats * len(images) / (time.perf_counter() - start))
    return best


def embed_files(task: Task, precision: Precision, paths: list[Path]) -> float:
    """Return images per second of `Embedder.embed_images`, from JPEG files."""
    embedder = Embedder(task, None, EmbedConfig(device="cpu", precision=precision), "cpu")
    embedder.embed_images(paths[:8])
    start = time.perf_counter()
    embedder.embed_images(paths)
    return len(paths) / (time.perf_counter() - start)


def main(name: str, turns: int) -> None:
    """Measure and print."""
    size = {"height": 256, "width": 128} if name == "vit_b16" else {}
    backbone = BackboneConfig.model_validate({"name": name, "weights": "random", **size})
    task = build_task(TrainConfig(device="cpu", method="clip_baseline", backbone=backbone), identities=2).eval()
    with tempfile.TemporaryDirectory() as text, torch.inference_mode(False), torch.no_grad():
        folder = Path(text)
        ways = encoders(task, folder)
        for batch in BATCHES:
            found = rates(ways, noise(task, batch), turns)
            shown = ", ".join(f"{way} {rate:,.0f} ({rate / found['eager']:.2f} x)" for way, rate in found.items())
            print(f"{name}, batch {batch}, images per second: {shown}")
        people = 1 if name == "vit_b16" else 16
        world = WorldConfig(seed=0, train_identities=2, test_identities=people, cameras=4, images_per_camera=4)
        paths = sorted(write_market1501(folder / "people", world).rglob("*.jpg"))
        precisions: tuple[Precision, ...] = ("no", "bf16")
        for precision in precisions:
            rate = embed_files(task, precision, paths)
            minutes = MANY / rate / 60
            print(
                f"{name}, Embedder from files, precision {precision}: {rate:,.0f} images per second; "
                f"{MANY:,} images take {minutes:,.0f} minutes"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="tiny", choices=["tiny", "vit_b16"])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    main(options.name, options.turns)
