"""A LLaVA with random weights, small enough to build in a test, made of the real transformers classes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from captioning.prompts.templates import compose, get_template
from tools.tiny_llava.model import build_tokenizer

SIDE = 32
PATCH = 8


def save_mini_llava(folder: Path, seed: int = 0) -> Path:
    """Build the model from `seed`, write it to `folder` with `save_pretrained` and return the folder."""
    text = compose({"gender": "female", "upper_color": "red", "upper_type": "coat", "hair": "long"})
    tokenizer = build_tokenizer([text, get_template("scgi").prompt()], [], vocab_size=320)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "<s>", "</s>", "<image>")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["<pad>"],
            initializer_range=0.5,  # large, so that the text depends on the image
        ),
        image_token_index=ids["<image>"],
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    # The generation config of a model may ask for sampling, as LLaMA's does. The engine must ignore it.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.9, top_p=0.6, eos_token_id=ids["</s>"], pad_token_id=ids["<pad>"], bos_token_id=1
    )
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    # Like the oldest published processors, this one does not contain the model's patch size.
    LlavaProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder
