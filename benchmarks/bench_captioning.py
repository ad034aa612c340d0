"""Captioning with the embedded tiny LLaVA: one image at a time, in batches, and by filling slots.

    python benchmarks/bench_captioning.py [images]

Prints images a second of each way over the same framed images, best of three turns, taken in turns in one run, and the
ratios. Targets: batches of 32 at least 15 x one at a time with slots filled, and slots at least 2 x plain batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from PIL import Image

from captioning.config import CaptionConfig
from captioning.llava import Engine
from data.synthetic import training_sample

BATCH = 32
ALONE = 16
TURNS = 3


def rate(work: Callable[[], None], images: int) -> float:
    """Return images a second of one call."""
    started = time.perf_counter()
    work()
    return images / (time.perf_counter() - started)


def main(count: int) -> None:
    """Measure and print."""
    free = Engine.load(CaptionConfig())
    slots = Engine.load(CaptionConfig(decoding="slots"))
    framed = [free.prepare(Image.fromarray(training_sample(3, 4 * i).image)) for i in range(count)]

    def batches(engine: Engine) -> Callable[[], None]:
        def work() -> None:
            for start in range(0, count, BATCH):
                engine.reply(framed[start : start + BATCH])

        return work

    def alone() -> None:
        for image in framed[:ALONE]:
            free.reply([image])

    ways = {
        "one at a time, generate": (alone, ALONE),
        f"batches of {BATCH}, generate": (batches(free), count),
        f"batches of {BATCH}, slots": (batches(slots), count),
    }
    free.reply(framed[:BATCH])
    slots.reply(framed[:BATCH])
    best = {name: max(rate(work, images) for _ in range(TURNS)) for name, (work, images) in ways.items()}
    first, plain, filled = best.values()
    for name, value in best.items():
        print(f"{name:28s} {value:7.1f} images/s")
    print(f"slots / batched generate     {filled / plain:7.2f} x (target >= 2)")
    print(f"slots / one at a time        {filled / first:7.2f} x (target >= 15)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
