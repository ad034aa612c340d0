"""Speed of captioning at the size of a published model, with random weights: images per second and share of the limit.

    python benchmarks/bench_captioning_shapes.py [SHAPE] [batch]

SHAPE is a key of `SHAPES`; the default is llava-1.5-7b (14 GB in bf16) on a GPU, else small. The limit is the time for
the operations of the vision tower and the prompt, as torch counts them, at the rate of a large matrix product in the
same format (bf16; float32 where bf16 is emulated), measured in the same run; decoding is not part of it. Random weights
generate nonsense: slots are filled as always, and free text runs to the template's token limit. Target on an H200: at
least 50 % of the limit with slots.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from matrix_rate import DEVICE, ON_GPU, device_name, has_bf16, matrix_rate, wait
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from captioning.captioner import TINY_FOLDER
from captioning.chat_form import LLAVA, ChatForm
from captioning.config import CaptionConfig
from captioning.engines.family import Family
from captioning.engines.llava import Engine
from captioning.engines.llava_load import Llava
from data.synthetic.world import training_sample

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b": (
        {
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    ),
    # The same widths and input at a quarter of the depth: the compiler needs a quarter of the time.
    "llava-1.5-7b-quarter": (
        {
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 6,
            "num_attention_heads": 16,
        },
        {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 8,
            "num_attention_heads": 32,
        },
    ),
    # An eighth of the depth, for a CPU.
    "llava-1.5-7b-shallow": (
        {
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 3,
            "num_attention_heads": 16,
        },
        {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
        },
    ),
    "small": (
        {
            "image_size": 112,
            "patch_size": 14,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
        },
        {
            "vocab_size": 2048,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
        },
    ),
    "dry": (  # to try the code, not to measure
        {
            "image_size": 56,
            "patch_size": 14,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        {
            "vocab_size": 2048,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    ),
}
TURNS = 3


def random_llava(shape: str, dtype: torch.dtype, *, layers: int | None = None) -> Llava:
    """Return a LLaVA-1.5 of that shape with random weights and the tiny model's tokenizer.

    layers: of the language model, instead of those of the shape.
    """
    vision, text = SHAPES[shape]
    text = {**text, "num_hidden_layers": layers or text["num_hidden_layers"]}
    processor = AutoProcessor.from_pretrained(TINY_FOLDER, local_files_only=True)
    tokenizer = processor.tokenizer
    side, patch = vision["image_size"], vision["patch_size"]
    tokens = (side // patch) ** 2
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids, eos_token_id=tokenizer.eos_token_id)
    processor.image_processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return Llava(
        model=model,
        processor=processor,
        device=torch.device(DEVICE),
        dtype=dtype,
        family=Family.of(config),
        form=ChatForm(model_type=LLAVA),
        folder=TINY_FOLDER,
    )


def operations(engine: Engine, images: list[Image.Image]) -> float:
    """Return the operations of vision tower and prompt per image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        engine.llava.model.model(input_ids=engine.prompt_1L.expand(len(images), -1), pixel_values=engine.pixels(images))
    return counter.get_total_flops() / len(images)


def rate(engine: Engine, images: list[Image.Image]) -> float:
    """Return images per second: the best of several batches, after one that warms up."""
    best = 0.0
    for turn in range(TURNS + 1):
        wait()
        started = time.perf_counter()
        engine.reply(images)
        wait()
        if turn:
            best = max(best, len(images) / (time.perf_counter() - started))
    return best


def main(shape: str, batch: int) -> None:
    """Measure and print."""
    dtype = torch.bfloat16 if has_bf16() else torch.float32
    llava = random_llava(shape, dtype)
    peak = matrix_rate(dtype)
    engines = {decoding: Engine(llava, CaptionConfig(decoding=decoding)) for decoding in ("slots", "free")}
    slots = engines["slots"]
    framed = [slots.prepare(Image.fromarray(training_sample(3, 4 * i).image)) for i in range(batch)]
    need = operations(slots, framed[:2])
    limit = peak / need
    print(
        f"{device_name()}: {dtype} matrix product {peak / 1e12:.2f} TFLOP/s; {shape}, batches of {batch}, "
        f"{slots.prompt_1L.shape[1]} positions, {need / 1e12:.3f} TFLOP per image: limit {limit:.1f} images/s"
    )
    for name, engine in engines.items():
        found = rate(engine, framed)
        target = "   (target >= 50 % on an H200)" if name == "slots" and ON_GPU else ""
        print(f"  {name:6s} {found:8.2f} images/s   {found / limit:5.0%} of the limit{target}")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else ("llava-1.5-7b" if ON_GPU else "small"),
        int(sys.argv[2]) if len(sys.argv) > 2 else (64 if ON_GPU else 16),
    )
