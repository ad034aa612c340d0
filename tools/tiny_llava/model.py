"""The embedded default captioner: a small LLaVA of transformers' own classes, with its own tokenizer.

`LlavaForConditionalGeneration` and `LlavaProcessor` are those of LLaVA-1.5, so code that loads
`llava-hf/llava-1.5-7b-hf` loads this model too. Only the vision tower differs: it is the hybrid ViT of transformers'
DPT, with a small ResNet before the attention. A CLIP ViT of this size learns too slowly from scratch on two CPU cores.

Shape legend: B batch, L tokens, D width of the vision tower.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    DPTConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
)

IMAGE_SIZE: Final = 128
"""Side of the square input in pixels: a 64 x 128 crop fits without resizing."""
PATCH_SIZE: Final = 16
"""Side of a patch in pixels: 64 patches, of which a 1:2 crop covers the middle 32."""
WIDTH: Final = 192
"""Width of the vision tower."""
MAX_POSITIONS: Final = 1024
"""Maximum number of tokens, including image tokens."""

_SPECIAL: Final = ("<pad>", "<s>", "</s>", "<image>")


def build_tokenizer(
    corpus: Iterable[str], instructions: Iterable[str], vocab_size: int = 640
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `corpus`: words of captions become single tokens, and any other text can be encoded.

    Each of `instructions` is also one token, because the model was trained on these only: encoding them word by word
    would double the length of the prompt. Any other instruction is encoded word by word, or byte by byte. Like LLaVA's
    tokenizer, it adds `<s>` before the text and encodes `<image>` as one token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in instructions])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a finished model."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Return the config: a ResNet of 7 convolutions, a 2-layer ViT of width 192 and a 3-layer Llama of width 128."""
    convolutions = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 128, WIDTH],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3"],  # strides 4, 8 and 16
    )
    vision = DPTConfig(
        is_hybrid=True,
        backbone_config=convolutions,
        backbone_featmap_shape=[1, WIDTH, IMAGE_SIZE // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE],
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=2 * WIDTH,
        layer_norm_eps=1e-6,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in _SPECIAL}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return the model with random weights from torch's default generator, which the caller seeds."""
    config = build_config(tokenizer)
    model = LlavaForConditionalGeneration(config)
    text = config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor: resizing, center crop and normalization of LLaVA-1.5, at the size of the tiny model."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which "default" drops again
        image_token="<image>",
    )
