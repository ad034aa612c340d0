"""Captioning with a LLaVA of true shape and random weights, made on the device, through the product's engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from bench_captioning_shapes import operations, random_llava, rate
from checks.part import Check
from checks.rows import NotRun, Outcome, all_of, at_least
from matrix_rate import DEVICE, ON_GPU, matrix_rate
from PIL import Image
from transformers import LlavaForConditionalGeneration

from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from captioning.engines.llava_load import Llava, compile_llava, quantization_settings
from captioning.reading import Loaded
from data.synthetic.world import training_sample
from gpu.sizes import Sizes

SHARE, RATIO, BODY = 0.5, 15.0, 1.5
"""Wanted share of the limit that prefill sets, ratio to one image at a time, and ratio of body tokens to all tokens."""
_PEOPLE = 32


class Captioning:
    """The checks of the captioning engine."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes

    def checks(self) -> list[Check]:
        """Return the checks."""
        fast = f"share >= {SHARE:.0%} of the limit, ratio >= {RATIO:g}"
        return [
            Check(name="limit set by prefill", want="", work=self.limits, seconds=25),
            Check(name="one image at a time", want="", work=self.alone, seconds=15),
            Check(name="slots", want=fast, work=self.slots, seconds=15),
            Check(name="slots, body tokens", want=fast, work=self.body, seconds=15),
            Check(name="free text", want=f"ratio >= {RATIO:g}", work=self.free, seconds=25),
            Check(name="slots, 4 bit", want="", work=self.four_bit, seconds=30),
            Check(
                name="batch too large for the memory",
                want="batch halved, a caption per image",
                work=self.out_of_memory,
                seconds=45,
            ),
        ]

    # Shared by the checks ------------------------------------------------------------------------------

    @cached_property
    def llava(self) -> Llava:
        """The model, in bf16."""
        return random_llava(self.sizes.llava, torch.bfloat16)

    @cached_property
    def framed(self) -> list[Image.Image]:
        """Drawn people, framed for the model: a batch."""
        engine = self.engine()
        drawn = [engine.prepare(Image.fromarray(training_sample(3, 4 * i).image)) for i in range(_PEOPLE)]
        return [drawn[i % _PEOPLE] for i in range(self.sizes.batch)]

    @cached_property
    def limit(self) -> float:
        """Images per second of the vision tower and the prompt alone, at the rate of a matrix product."""
        return self.peak / self.need

    @cached_property
    def peak(self) -> float:
        """Operations per second of a large matrix product."""
        return matrix_rate(torch.bfloat16, side=self.sizes.side)

    @cached_property
    def need(self) -> float:
        """Operations of the vision tower and the prompt per image."""
        return operations(self.engine(), self.framed[:2])

    @cached_property
    def single(self) -> float:
        """Images per second of free text, one image at a time."""
        return rate(self.engine(decoding="free", batch_size=1), self.framed[:1])

    def engine(self, **settings: Any) -> Engine:
        """Return the product's engine around the model, with slots unless `settings` say otherwise."""
        return Engine(self.llava, self.config(**settings))

    def config(self, **settings: Any) -> CaptionConfig:
        """Return settings with slots and the batch size of this run."""
        return CaptionConfig.model_validate({"decoding": "slots", "batch_size": self.sizes.batch, **settings})

    # Checks -------------------------------------------------------------------------------------------

    def limits(self) -> Outcome:
        """Measure the matrix rate and what it allows."""
        got = f"{self.limit:.1f} images/s at {self.peak / 1e12:.1f} TFLOP/s, {self.need / 1e12:.3f} TFLOP per image"
        figures = {"images_per_second": self.limit, "matrix_rate": self.peak, "operations": self.need}
        return Outcome(got=got, figures=figures)

    def alone(self) -> Outcome:
        """Measure one image at a time."""
        return Outcome(got=f"{self.single:.2f} images/s", figures={"images_per_second": self.single})

    def slots(self) -> Outcome:
        """Measure slots."""
        return self._speed(self.engine(), share=SHARE, ratio=RATIO)

    def body(self) -> Outcome:
        """Measure slots with the tokens of the body only; the share is of the limit with all tokens."""
        _needs_image_tokens()
        return self._speed(self.engine(image_tokens="body"), share=SHARE, ratio=RATIO)

    def free(self) -> Outcome:
        """Measure free text, which nonsense weights write up to the limit of tokens."""
        return self._speed(self.engine(decoding="free"), share=None, ratio=RATIO)

    def four_bit(self) -> Outcome:
        """Measure slots with the language model in 4 bit."""
        return self._speed(Engine(quantized(self.llava), self.config()), share=None, ratio=None)

    def out_of_memory(self) -> Outcome:
        """Caption a batch that does not fit, through the method that the caption stage calls."""
        engine = self.engine(batch_size=self.sizes.crowd)
        images = [
            Loaded(sha256=f"{i:064x}", image=self.framed[i % len(self.framed)], reason=None)
            for i in range(self.sizes.crowd)
        ]
        with memory_ending_at(engine, self.sizes.held):
            rows = [row for batch in engine.rows(images) for row in batch]
        captioned = sum(row.reply is not None for row in rows)
        return Outcome(
            got=f"{self.sizes.crowd} images: batches of {engine.width}, {captioned} captions",
            passed=engine.width < self.sizes.crowd and captioned == self.sizes.crowd,
            figures={"batch": engine.width, "captions": captioned},
        )

    def _speed(self, engine: Engine, *, share: float | None, ratio: float | None) -> Outcome:
        """Measure `engine`; share, ratio: its targets, where speeds are judged."""
        found = rate(engine, self.framed)
        of_limit, times = found / self.limit, found / self.single
        judged = self.sizes.judged
        return Outcome(
            got=f"{found:.1f} images/s, {of_limit:.0%} of the limit, {times:.1f} x one at a time",
            passed=all_of(at_least(of_limit, share), at_least(times, ratio)) if judged else None,
            figures={"images_per_second": found, "share": of_limit, "ratio": times},
        )


class CompiledCaptioning(Captioning):
    """The checks of compiled captioning, at a quarter of the depth: at full depth the compiler takes over five minutes.

    Rates, limit and ratios are those of the shallow model; the work of a layer is that of the full one.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(replace(sizes, llava=sizes.compiled_llava))
        self._is_compiled = False

    def checks(self) -> list[Check]:
        """Return the checks. Compiling changes the model, so it comes last."""
        return [
            Check(name="limit set by prefill", want="", work=self.limits, seconds=10),
            Check(name="slots", want="", work=self.measured, seconds=10),
            Check(
                name="slots, compiled",
                want=f"share >= {SHARE:.0%} of the limit, ratio >= {RATIO:g}",
                work=self.compiled,
                seconds=45,
            ),
            Check(
                name="slots, body tokens, compiled",
                want=f">= {BODY:g} x all tokens, compiled",
                work=self.body_compiled,
                seconds=30,
            ),
        ]

    def measured(self) -> Outcome:
        """Measure slots, not compiled."""
        return self._speed(self.engine(), share=None, ratio=None)

    def compiled(self) -> Outcome:
        """Measure slots with compiled parts."""
        with self._compiler():
            return self._speed(self.engine(compile=True), share=SHARE, ratio=RATIO)

    def body_compiled(self) -> Outcome:
        """Measure the same with the tokens of the body only."""
        _needs_image_tokens()
        with self._compiler():
            body, every = (rate(self.engine(compile=True, image_tokens=t), self.framed) for t in ("body", "all"))
        return Outcome(
            got=f"{body:.1f} images/s, {body / every:.2f} x all tokens",
            passed=at_least(body / every, BODY) if self.sizes.judged else None,
            figures={"images_per_second": body, "ratio": body / every},
        )

    @contextmanager
    def _compiler(self) -> Iterator[None]:
        """Compile the model, once, and use the compiled parts; the dry form runs them as they are."""
        if not self._is_compiled:
            compile_llava(self.llava)
            self._is_compiled = True
        with torch.compiler.set_stance("default" if self.sizes.compiles else "force_eager"):
            yield


def _needs_image_tokens() -> None:
    if "image_tokens" not in CaptionConfig.model_fields:
        raise NotRun("this version has no caption.image_tokens")


def quantized(llava: Llava) -> Llava:
    """Return a copy whose language model is quantized as caption.quantization=4bit does it, without any file."""
    model = LlavaForConditionalGeneration.from_pretrained(
        None,
        config=llava.model.config,
        state_dict=llava.model.state_dict(),
        dtype=llava.dtype,
        device_map={"": DEVICE},
        quantization_config=quantization_settings(llava.folder, "4bit", llava.dtype),
    ).eval()
    model.generation_config = llava.model.generation_config
    return replace(llava, model=model)


@contextmanager
def memory_ending_at(engine: Engine, images: int) -> Iterator[None]:
    """Without a GPU, let the model run out of memory with more than `images` images per batch; else change nothing."""

    def refuse(module: torch.nn.Module, arguments: Any, named: Any) -> None:
        (pixels,) = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)][:1]
        if len(pixels) > images:
            raise torch.OutOfMemoryError(f"the dry form has memory for {images} images")

    if ON_GPU:
        yield
        return
    hook = engine.llava.model.model.vision_tower.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
