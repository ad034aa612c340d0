"""Price of the image tokens: caption.image_tokens=body and body_only beside all, in operations and images per second.

    python benchmarks/bench_image_tokens.py [--images 128] [--turns 4]

The first table counts the operations of LLaVA-1.5-7B per image, on the meta device, where nothing is computed. The
second captions the same 1:2 crops with each setting, in turns; the best turn counts. Two models: the embedded one,
whose vision tower is its largest part, and a random one with the widths, the vocabulary and the input of LLaVA-1.5-7B
at an eighth of its depth (on a GPU at full depth). A ratio depends on the processor's instructions, which are printed
with it. To measure as without AVX-512, set ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2. bf16 is skipped where
it is emulated. Target in bf16: at least 1.5 x. For the accuracy, see `python -m tools.tiny_llava compare`.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_captioning_shapes import SHAPES, random_llava
from matrix_rate import ON_GPU, device_name, has_bf16, wait
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from captioning.config import CaptionConfig
from captioning.engines.image_tokens import PatchGrid
from captioning.engines.llava import Engine
from captioning.framing import body_of, frame
from data.synthetic.world import training_sample

SETTINGS = ("all", "body", "body_only")
FULL = "llava-1.5-7b"
LARGE = FULL if ON_GPU else "llava-1.5-7b-shallow"
LARGE_BATCH = 64 if ON_GPU else 2
TEXT = 80
"""Tokens of the default template beside the image, in LLaVA-1.5's tokenizer."""
REPLY = 45
CROPS = ((64, 192), (64, 160), (64, 128), (80, 128), (128, 128))


def operations(model: Any, image_tokens: int) -> tuple[float, float, float]:
    """Return the operations of tower and projector, of reading the prompt, and of writing the reply."""
    config = model.config
    side = config.vision_config.image_size
    pixels = torch.empty(1, 3, side, side, device="meta")
    positions = TEXT + image_tokens
    embeds = torch.empty(1, positions, config.text_config.hidden_size, device="meta")
    counts = []
    for work in (
        lambda: model.model.get_image_features(pixel_values=pixels),
        lambda: model.lm_head(
            model.model.language_model(inputs_embeds=embeds, use_cache=True).last_hidden_state[:, -1]
        ),
    ):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            work()
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1], REPLY * _per_token(model, positions + REPLY // 2)


def _per_token(model: Any, positions: int) -> float:
    """Return the operations of one more token after `positions` others: the weights, and attention over the cache."""
    text = model.config.text_config
    weights = sum(p.numel() for p in model.model.language_model.layers.parameters()) + model.lm_head.weight.numel()
    return 2.0 * weights + 4.0 * text.num_hidden_layers * text.hidden_size * positions


def count_operations() -> None:
    """Print the operations at the shapes of LLaVA-1.5-7B for crops of several shapes."""
    vision, text = SHAPES[FULL]
    config = LlavaConfig(vision_config=CLIPVisionConfig(**vision), text_config=LlamaConfig(**text))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    model.requires_grad_(False)
    side, patch = vision["image_size"], vision["patch_size"]
    grid = PatchGrid(side=side, patch=patch, before=1, dropped=1)
    everything = operations(model, (side // patch) ** 2)
    tower = everything[0]
    print(f"{FULL}: TFLOP per image with {TEXT} text tokens and a reply of {REPLY} tokens")
    print("crop        image tokens   tower   prompt   reply   in all   all / body   all / body_only")
    for width, height in CROPS:
        framed = frame(Image.new("RGB", (width, height)), "pad", (side, side), (0.5, 0.5, 0.5))
        kept = int(grid.inside(grid.window(body_of(framed))).sum())
        parts = operations(model, kept)
        with_tower = sum(parts) - tower * (1 - kept / (side // patch) ** 2)
        cells = "   ".join(f"{part / 1e12:6.3f}" for part in (*parts, sum(parts)))
        print(
            f"{width:3d} x {height:3d} {kept:15d}   {cells}   {sum(everything) / sum(parts):10.2f}   "
            f"{sum(everything) / with_tower:10.2f}"
        )


@dataclass(kw_only=True)
class Race:
    """The settings over the same framed images. best: image_tokens -> seconds per image of the best turn."""

    name: str
    engines: dict[str, Engine]
    framed: list[Image.Image]
    best: dict[str, float] = field(default_factory=dict)

    def turn(self) -> None:
        """Caption all images with each setting."""
        for tokens, engine in self.engines.items():
            wait()
            started = time.perf_counter()
            engine.reply(self.framed)
            wait()
            spent = (time.perf_counter() - started) / len(self.framed)
            self.best[tokens] = min(self.best.get(tokens, spent), spent)

    def warm_up(self) -> None:
        """Compile, and forget the time."""
        self.turn()
        self.best.clear()

    def report(self) -> None:
        """Print images per second and their ratio to `all`."""
        rates = {tokens: 1 / seconds for tokens, seconds in self.best.items()}
        cells = "   ".join(f"{tokens} {rate:8.2f} ({rate / rates['all']:.2f} x)" for tokens, rate in rates.items())
        print(f"{self.name:50s} {cells}", flush=True)


def tiny(images: list[Image.Image], dtype: str, decoding: str, *, compiled: bool) -> Race:
    """Return the race with the embedded model."""
    settings = {"dtype": dtype, "decoding": decoding, "compile": compiled, "batch_size": len(images)}
    configs = {tokens: CaptionConfig.model_validate({**settings, "image_tokens": tokens}) for tokens in SETTINGS}
    engines = {tokens: Engine.load(config) for tokens, config in configs.items()}
    framed = [engines["all"].prepare(image) for image in images]
    return Race(
        name=f"tiny, {dtype}, {decoding}{', compiled' if compiled else ''}, batches of {len(images)}",
        engines=engines,
        framed=framed,
    )


def large(images: list[Image.Image], dtype: str) -> Race:
    """Return the race with a random model of the widths of LLaVA-1.5-7B and a prompt as long as its own."""
    llava = random_llava(LARGE, getattr(torch, dtype))
    settings = {"decoding": "slots", "batch_size": LARGE_BATCH}
    engines = {}
    for tokens in SETTINGS:
        engine = Engine(llava, CaptionConfig.model_validate({**settings, "image_tokens": tokens}))
        missing = TEXT + llava.family.image_tokens - engine.prompt_1L.shape[1]
        last_11 = engine.prompt_1L[:, -1:]
        engine.prompt_1L = torch.cat([engine.prompt_1L, last_11.expand(-1, missing)], dim=1)
        engines[tokens] = engine
    framed = [engines["all"].prepare(image) for image in images[:LARGE_BATCH]]
    return Race(name=f"{LARGE}, {dtype}, slots, batches of {LARGE_BATCH}", engines=engines, framed=framed)


def main(count: int, turns: int, *, bf16: bool) -> None:
    """Count, measure and print."""
    count_operations()
    limits = {name: os.environ[name] for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if name in os.environ}
    print(f"\n{device_name()}, {torch.backends.cpu.get_cpu_capability()}, limits {limits or 'none'}, 1:2 crops")
    images = [Image.fromarray(training_sample(3, 4 * i).image) for i in range(count)]
    last = "bfloat16" if bf16 else "float32"
    cases = [
        (last, "slots", False),
        (last, "free", False),
        *((dtype, "slots", True) for dtype in sorted({"float32", last})),
    ]
    races = [tiny(images, dtype, decoding, compiled=compiled) for dtype, decoding, compiled in cases]
    races.append(large(images, last))
    for race in races:
        race.warm_up()
    for _ in range(turns):
        for race in races:
            race.turn()
    for race in races:
        race.report()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--turns", type=int, default=4, help="number of turns; the best counts")
    given = parser.parse_args()
    main(given.images, given.turns, bf16=has_bf16())
