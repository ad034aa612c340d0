"""Speed of captioning with the embedded tiny LLaVA: single images, batches, slots, and compiled.

    python benchmarks/bench_captioning.py [--images 128] [--turns 7]

All methods caption the same framed images in turns; the best of several turns counts. The limit is a pass through the
vision tower and the prompt alone, which every method needs. Targets: slots at least 2 x plain batches of 32, and at
least 15 x one image at a time. bf16 is skipped on processors that emulate it, unless --bf16 is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matrix_rate import has_bf16
from PIL import Image

from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from data.synthetic.world import training_sample

BATCH = 32
LARGE = 128
ALONE = 8


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of captioning. work: captions `images` images."""

    name: str
    work: Callable[[], None]
    images: int

    def rate(self) -> float:
        """Return the images per second of one call."""
        started = time.perf_counter()
        self.work()
        return self.images / (time.perf_counter() - started)


def methods(dtype: str, images: list[Image.Image]) -> list[Method]:
    """Return every method in one number format, warmed up and compiled."""

    def engine(batch_size: int, decoding: str, *, compiled: bool = False) -> Engine:
        settings = {"dtype": dtype, "batch_size": batch_size, "decoding": decoding, "compile": compiled}
        return Engine.load(CaptionConfig.model_validate(settings))

    free = engine(1, "free")
    framed = [free.prepare(image) for image in images]

    def batches(size: int, name: str, reply: Callable[[list[Image.Image]], object]) -> Method:
        def work() -> None:
            for start in range(0, len(framed), size):
                reply(framed[start : start + size])

        work()
        return Method(name=f"{dtype}, batches of {size}, {name}", work=work, images=len(framed))

    def alone() -> None:
        for image in framed[:ALONE]:
            free.reply([image])

    @torch.inference_mode()
    def read(part: list[Image.Image]) -> None:
        free.llava.model.model(input_ids=free.prompt_1L.expand(len(part), -1), pixel_values=free.pixels(part))

    alone()
    return [
        Method(name=f"{dtype}, one at a time, generate", work=alone, images=ALONE),
        batches(BATCH, "generate", engine(BATCH, "free").reply),
        batches(BATCH, "slots", engine(BATCH, "slots").reply),
        batches(BATCH, "slots, compiled", engine(BATCH, "slots", compiled=True).reply),
        batches(BATCH, "limit", read),
        batches(LARGE, "generate", engine(LARGE, "free").reply),
        batches(LARGE, "slots, compiled", engine(LARGE, "slots", compiled=True).reply),
    ]


def main(count: int, turns: int, bf16: bool) -> None:
    """Measure and print."""
    images = [Image.fromarray(training_sample(3, 4 * i).image) for i in range(count)]
    table = [methods(dtype, images) for dtype in ("float32", *(["bfloat16"] if bf16 else []))]
    rates: dict[str, float] = {}
    for _ in range(turns):
        for method in [method for column in table for method in column]:
            rates[method.name] = max(rates.get(method.name, 0.0), method.rate())
    print(f"{'':45s} images/s   x generate   x one at a time")
    for column in table:
        single, plain = (rates[method.name] for method in column[:2])
        for method in column:
            rate = rates[method.name]
            print(f"{method.name:45s} {rate:8.1f}   {rate / plain:10.2f}   {rate / single:15.2f}")
    single, plain = (rates[method.name] for method in table[0][:2])
    best = max((name for name in rates if "slots" in name), key=lambda name: rates[name])
    print(
        f"\n{best}: {rates[best] / plain:.2f} x the speed of transformers' generate by default "
        f"(float32, batches of {BATCH}; target >= 2), {rates[best] / single:.1f} x one at a time (target >= 15)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7, help="number of turns; the best counts")
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=has_bf16(),
        help="default: where the processor can",
    )
    given = parser.parse_args()
    main(given.images, given.turns, given.bf16)
