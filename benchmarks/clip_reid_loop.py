"""Speed of the second stage of the public CLIP-ReID (github.com/Syliz517/CLIP-ReID), as its own log gives it.

Its loop, model, losses, optimizer, sampler, loader and augmentation run unchanged, with its published settings, on JPEG
files that are written for it. Random weights of ViT-B/16 replace its download of CLIP. Its loop supports only CUDA and
half precision; without a GPU, tensors that it moves to CUDA stay on the CPU, in float32.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from matrix_rate import DEVICE, ON_GPU
from PIL import Image
from torch import nn

from data.synthetic.world import training_sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests run the same code

from tools.parity_peer.__main__ import peer_code
from tools.parity_peer.settings import settings
from tools.parity_peer.world import Case

WORKERS = min(8, os.cpu_count() or 1)
"""Its published number, or the number of cores if that is smaller."""
_EPOCHS = 2


def peer_images_per_second(folder: Path, *, identities: int, images: int, steps: int) -> float:
    """Train two epochs of `steps` batches of `identities` x `images`; return the logged speed of the second.

    folder: a checkout of the public code.
    """
    with tempfile.TemporaryDirectory() as name, peer_code(folder, on_cpu=not ON_GPU), _no_other_device():
        root = Path(name)
        _write_market(root / "Market-1501-v15.09.15", identities, images * steps)
        config = settings(folder, Case(backbone="vit_b16"))
        config.DATASETS.NAMES, config.DATASETS.ROOT_DIR = "market1501", str(root)
        config.DATALOADER.NUM_WORKERS = WORKERS
        second = config.SOLVER.STAGE2
        second.IMS_PER_BATCH, second.MAX_EPOCHS = identities * images, _EPOCHS
        loader, _, test_loader, queries, classes, cameras, views = import_module(
            "datasets.make_dataloader_clipreid"
        ).make_dataloader(config)
        model = _model(config, classes, cameras, views)
        loss_of, center = import_module("loss.make_loss").make_loss(config, num_classes=classes)
        optimizer, center_optimizer = import_module("solver.make_optimizer_prompt").make_optimizer_2stage(
            config, model, center
        )
        schedule = import_module("solver.lr_scheduler").WarmupMultiStepLR(
            optimizer, second.STEPS, second.GAMMA, second.WARMUP_FACTOR, second.WARMUP_ITERS, second.WARMUP_METHOD
        )
        train = import_module("processor.processor_clipreid_stage2").do_train_stage2
        with _logged() as lines:
            train(
                config,
                model,
                center,
                loader,
                test_loader,
                optimizer,
                center_optimizer,
                schedule,
                loss_of,
                queries,
                DEVICE,
            )
    seconds = [float(found[1]) for line in lines if (found := re.search(r"Time per batch: ([\d.]+)\[s\]", line))]
    if len(seconds) != _EPOCHS:
        raise RuntimeError(f"{folder} logged {len(seconds)} epochs instead of {_EPOCHS}: {lines[-5:]}")
    return identities * images / seconds[-1]


def _write_market(root: Path, identities: int, images: int) -> None:
    """Write a tree with Market-1501's names, whose files repeat a few drawn people."""
    people = []
    for i in range(16):
        stream = io.BytesIO()
        Image.fromarray(training_sample(3, 4 * i).image).save(stream, "JPEG", quality=95)
        people.append(stream.getvalue())
    for part, count in (("bounding_box_train", images), ("query", 1), ("bounding_box_test", 1)):
        (root / part).mkdir(parents=True)
        for pid in range(1, identities + 1):
            for i in range(count):
                path = root / part / f"{pid:04d}_c{i % 6 + 1}s1_{i:06d}_01.jpg"
                path.write_bytes(people[(pid + i) % len(people)])


def _model(config: Any, classes: int, cameras: int, views: int) -> nn.Module:
    make = import_module("model.make_model_clipreid")
    build_model = import_module("model.clip.model").build_model
    weights = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).state_dict()

    def random_clip(_: str, height: int, width: int, stride: int) -> nn.Module:
        return build_model(weights, height, width, stride)

    with patch.object(make, "load_clip_to_cpu", random_clip):
        return make.make_model(config, num_class=classes, camera_num=cameras, view_num=views)


@contextmanager
def _no_other_device() -> Iterator[None]:
    """Make moves to CUDA do nothing, unless there is a GPU."""
    if ON_GPU:
        yield
        return
    tensor_to, module_to = torch.Tensor.to, nn.Module.to

    def stay(to: Any) -> Any:
        return lambda self, *args, **options: self if args[:1] == ("cuda",) else to(self, *args, **options)

    with (
        patch.object(torch.Tensor, "to", stay(tensor_to)),
        patch.object(nn.Module, "to", stay(module_to)),
        patch.object(torch.cuda, "synchronize", lambda: None),
    ):
        yield


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the lines that its loop logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transreid.train")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
