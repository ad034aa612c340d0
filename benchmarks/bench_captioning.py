"""Captioning with the embedded tiny LLaVA: one image at a time, in batches, by filling slots, and compiled.

    python benchmarks/bench_captioning.py [--images 128] [--turns 7]

Every way captions the same framed images, taken in turns in one run, best of several; the limit is the vision tower and
the prompt alone, which every way must pass through. Targets: slots at least 2 x plain batches of 32, and at least 15 x
one image at a time. bf16 is left out where the processor emulates it, unless --bf16 asks for it.
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
class Way:
    """A way to caption: `work` does it with `images` of them."""

    name: str
    work: Callable[[], None]
    images: int

    def rate(self) -> float:
        """Return images a second of one call."""
        started = time.perf_counter()
        self.work()
        return self.images / (time.perf_counter() - started)


def ways(dtype: str, images: list[Image.Image]) -> list[Way]:
    """Return every way in one number format, warmed up (and compiled)."""

    def engine(batch_size: int, decoding: str, *, compiled: bool = False) -> Engine:
        settings = {"dtype": dtype, "batch_size": batch_size, "decoding": decoding, "compile": compiled}
        return Engine.load(CaptionConfig.model_validate(settings))

    free = engine(1, "free")
    framed = [free.prepare(image) for image in images]

    def batches(size: int, name: str, reply: Callable[[list[Image.Image]], object]) -> Way:
        def work() -> None:
            for start in range(0, len(framed), size):
                reply(framed[start : start + size])

        work()
        return Way(name=f"{dtype}, batches of {size}, {name}", work=work, images=len(framed))

    def alone() -> None:
        for image in framed[:ALONE]:
            free.reply([image])

    @torch.inference_mode()
    def read(part: list[Image.Image]) -> None:
        free.llava.model.model(input_ids=free.prompt_1L.expand(len(part), -1), pixel_values=free.pixels(part))

    alone()
    return [
        Way(name=f"{dtype}, one at a time, generate", work=alone, images=ALONE),
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
    table = [ways(dtype, images) for dtype in ("float32", *(["bfloat16"] if bf16 else []))]
    rates: dict[str, float] = {}
    for _ in range(turns):
        for way in [way for column in table for way in column]:
            rates[way.name] = max(rates.get(way.name, 0.0), way.rate())
    print(f"{'':45s} images/s   x generate   x one at a time")
    for column in table:
        single, plain = (rates[way.name] for way in column[:2])
        for way in column:
            rate = rates[way.name]
            print(f"{way.name:45s} {rate:8.1f}   {rate / plain:10.2f}   {rate / single:15.2f}")
    single, plain = (rates[way.name] for way in table[0][:2])
    best = max((name for name in rates if "slots" in name), key=lambda name: rates[name])
    print(
        f"\n{best}: {rates[best] / plain:.2f} x what transformers' generate does by default "
        f"(float32, batches of {BATCH}; target >= 2), {rates[best] / single:.1f} x one at a time (target >= 15)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7, help="of which the best counts")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=has_bf16(), help="default: if the processor has it"
    )
    given = parser.parse_args()
    main(given.images, given.turns, given.bf16)
