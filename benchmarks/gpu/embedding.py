"""Embedding of image files through the product's embedder: its speed, and what precision costs."""

from __future__ import annotations

import os
import time
from contextlib import closing
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_training import speed_config
from checks.part import Check
from checks.rows import Outcome, all_of, at_least
from matrix_rate import DEVICE, matrix_rate
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from data.device import CPU
from data.process.read_ahead import map_ahead
from data.synthetic.world import training_sample
from gpu.sizes import Sizes
from reid.config.backbone import BackboneConfig
from reid.embedding.embedder import EmbedConfig, Embedder, Precision
from reid.embedding.sources import pixels_of
from reid.tasks.base import Task
from reid.tasks.build import build_task

SHARE, COSINE, EXACT = 0.8, 0.999, 0.99999
"""Wanted share of the slower of encoder and decoder; smallest cosine with the CPU's embedding in bf16, in float32."""
_COMPARED = 64


class Embedding:
    """The checks of `reid.Embedder`, which `clip-scgi embed` uses."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def checks(self) -> list[Check]:
        """Return the checks."""
        slower = f">= {SHARE:.0%} of the slower of encoder and decoder" if self.sizes.judged else ""
        return [
            Check(name="decoded pixels, bf16", want="", work=self.encoder, seconds=10),
            Check(name="decoding alone", want="", work=self.decoding, seconds=10),
            Check(name="files, bf16", want=slower, work=self.files, seconds=15),
            Check(
                name="against float32 on the CPU",
                want=f"cosine >= {EXACT:g} in float32, >= {COSINE:g} in bf16 and fp16",
                work=self.cosines,
                seconds=15,
            ),
        ]

    # Shared by the checks ------------------------------------------------------------------------------

    @cached_property
    def task(self) -> Task:
        """The CLIP-ReID model on the device, with random weights."""
        sizes = self.sizes
        shape = BackboneConfig(name=sizes.backbones[0], weights="random", height=sizes.height, width=sizes.width)
        torch.manual_seed(0)
        return build_task(speed_config("clip_reid", "no", shape, 4, 2), identities=4).eval()

    @cached_property
    def people(self) -> list[Path]:
        """JPEG files of drawn people, each a file of its own."""
        self._held = TemporaryDirectory()
        folder = Path(self._held.name)
        drawn = [Image.fromarray(training_sample(3, 4 * i).image).resize((64, 128)) for i in range(32)]
        paths = [folder / f"{i:06d}.jpg" for i in range(self.sizes.files)]
        for i, path in enumerate(paths):
            drawn[i % len(drawn)].save(path, "JPEG", quality=95)
        return paths

    @cached_property
    def encoder_rate(self) -> float:
        """Images per second from decoded pixels; their copy to the device counts."""
        embedder, sizes = self.embedder("bf16"), self.sizes
        shape = (sizes.batch, sizes.height, sizes.width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        indices = np.tile(np.arange(sizes.batch), max(1, sizes.files // sizes.batch))
        embedder.embed_pixels(pixels, indices[: 4 * sizes.batch])
        started = time.perf_counter()
        embedder.embed_pixels(pixels, indices)
        return len(indices) / (time.perf_counter() - started)

    @cached_property
    def decoder_rate(self) -> float:
        """Files per second that are decoded and resized as the embedder does it, and not encoded."""
        people, cores = self.people, os.cpu_count() or 1
        shape, started = self.task.preprocess, time.perf_counter()
        with closing(map_ahead(lambda path: pixels_of(path, shape, ""), people, threads=cores, ahead=128)) as decoded:
            count = sum(1 for _ in decoded)
        return count / (time.perf_counter() - started)

    def embedder(self, precision: Precision, device: str = DEVICE) -> Embedder:
        """Return the product's embedder around the model."""
        config = EmbedConfig(device=device, batch_size=self.sizes.batch, precision=precision)
        return Embedder(self.task.to(device), None, config, device)

    # Checks -------------------------------------------------------------------------------------------

    def encoder(self) -> Outcome:
        """Compare the speed of the encoder with the matrix rate."""
        sizes = self.sizes
        batch = torch.zeros(2, 3, sizes.height, sizes.width, device=DEVICE)
        task = self.task.to(DEVICE)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            task.encoders()["image"](batch)
        need = counter.get_total_flops() / 2
        share = self.encoder_rate * need / matrix_rate(torch.bfloat16, side=sizes.side)
        return Outcome(
            got=f"{self.encoder_rate:,.0f} images/s, {share:.0%} of the matrix rate, {need / 1e9:.1f} GFLOP per image",
            figures={"images_per_second": self.encoder_rate, "share": share, "operations": need},
        )

    def decoding(self) -> Outcome:
        """Measure the decoder."""
        return Outcome(
            got=f"{self.decoder_rate:,.0f} images/s, {os.cpu_count()} cores",
            figures={"images_per_second": self.decoder_rate},
        )

    def files(self) -> Outcome:
        """Embed the files."""
        slower, embedder = min(self.encoder_rate, self.decoder_rate), self.embedder("bf16")
        started = time.perf_counter()
        embedder.embed_images(self.people)
        found = len(self.people) / (time.perf_counter() - started)
        share = found / slower
        return Outcome(
            got=f"{found:,.0f} images/s, {share:.0%} of the slower",
            passed=at_least(share, SHARE) if self.sizes.judged else None,
            figures={"images_per_second": found, "share": share},
        )

    def cosines(self) -> Outcome:
        """Compare embeddings of the device with those of the CPU."""
        people = self.people[:_COMPARED]
        found = {name: self.embedder(name).embed_images(people) for name in ("no", "bf16", "fp16")}
        exact = self.embedder("no", CPU).embed_images(people)
        least = {name: float((rows * exact).sum(1).min()) for name, rows in found.items()}
        return Outcome(
            got=f"float32 {least['no']:.6f}, bf16 {least['bf16']:.5f}, fp16 {least['fp16']:.5f}",
            passed=all_of(*(at_least(least[name], EXACT if name == "no" else COSINE) for name in least)),
            figures=least,
        )
