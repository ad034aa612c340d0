"""Captioning with the embedded tiny LLaVA: one image at a time, in batches, by filling slots, and compiled.

    python benchmarks/bench_captioning.py [images]

Every way captions the same framed images, taken in turns in one run, best of several; the limit is the vision tower and
the prompt alone, which every way must pass through. Targets: slots at least 2 x plain batches, and at least 15 x one
image at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from captioning.config import CaptionConfig
from captioning.llava import Engine
from data.synthetic import training_sample

BATCH = 32
ALONE = 8
TURNS = 5


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
    plain = CaptionConfig.model_validate({"dtype": dtype, "batch_size": BATCH})
    free = Engine.load(plain)
    slots = Engine.load(plain.model_copy(update={"decoding": "slots"}))
    compiled = Engine.load(plain.model_copy(update={"decoding": "slots", "compile": True}))
    framed = [free.prepare(image) for image in images]

    def batches(name: str, reply: Callable[[list[Image.Image]], object]) -> Way:
        def work() -> None:
            for start in range(0, len(framed), BATCH):
                reply(framed[start : start + BATCH])

        reply(framed[:BATCH])
        return Way(name=f"{dtype}, {name}", work=work, images=len(framed))

    def alone() -> None:
        for image in framed[:ALONE]:
            free.reply([image])

    @torch.inference_mode()
    def read(part: list[Image.Image]) -> None:
        free.llava.model.model(input_ids=free.prompt_1L.expand(len(part), -1), pixel_values=free.pixels(part))

    return [
        Way(name=f"{dtype}, one at a time, generate", work=alone, images=ALONE),
        batches(f"batches of {BATCH}, generate", free.reply),
        batches(f"batches of {BATCH}, slots", slots.reply),
        batches(f"batches of {BATCH}, slots, compiled", compiled.reply),
        batches(f"batches of {BATCH}, limit", read),
    ]


def main(count: int) -> None:
    """Measure and print."""
    images = [Image.fromarray(training_sample(3, 4 * i).image) for i in range(count)]
    table = [ways(dtype, images) for dtype in ("float32", "bfloat16")]
    rates: dict[str, float] = {}
    for _ in range(TURNS):
        for way in [way for column in table for way in column]:
            rates[way.name] = max(rates.get(way.name, 0.0), way.rate())
    first = table[0][0].name
    print(f"{'':44s} images/s   x generate   x one at a time")
    for column in table:
        single, plain = (rates[way.name] for way in column[:2])
        for way in column:
            rate = rates[way.name]
            print(f"{way.name:44s} {rate:8.1f}   {rate / plain:10.2f}   {rate / single:15.2f}")
    best = max((way.name for column in table for way in column[:-1]), key=lambda name: rates[name])
    print(
        f"\n{best}: {rates[best] / rates[table[0][1].name]:.2f} x what transformers' generate does by default "
        f"(float32, batches; target >= 2), {rates[best] / rates[first]:.1f} x one at a time (target >= 15)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
