"""Small LLaVAs with random weights of every family that runs in this process, in the hub's newer and older formats.

Real classes of transformers throughout: towers, language models, processors, and tokenizers built from scratch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from captioning.prompts.templates import compose, get_template

SIDE: Final = 32
PATCH: Final = 8
GRIDS: Final = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
WINDOW: Final = 24  # of Mistral's attention: far less than a prompt

# As on the hub: LLaVA-1.5, LLaVA-1.6-Mistral, LLaVA-OneVision and llama3-llava-next.
VICUNA: Final = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INSTRUCT: Final = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
    "{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + "
    "'</s> '}}{% endif %}{% endfor %}"
)
CHAT_ML: Final = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{# Render all text next #}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3: Final = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

_SMALL: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEXT: Final[dict[str, Any]] = {
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "initializer_range": 0.5,  # large, so that the text depends on the image
}
_VISION: Final[dict[str, Any]] = {"image_size": SIDE, "patch_size": PATCH}


@dataclass(frozen=True, kw_only=True)
class Sort:
    """One sort of LLaVA. tokenizer: sentencepiece, bytes or qwen. ends: more end tokens. options: of its config."""

    kind: str
    siglip: bool = False
    text: str = "llama"
    tokenizer: str = "sentencepiece"
    chat: str | None = VICUNA
    in_tokenizer: bool = False
    ends: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    text_options: dict[str, Any] = field(default_factory=dict)


_FULL: Final = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
SORTS: Final = {
    "llava_vicuna": Sort(kind="llava"),
    "llava_layers": Sort(kind="llava", options={"vision_feature_layer": [-2, -1]}),
    "llava_mistral": Sort(kind="llava", text="mistral", chat=None, text_options={"sliding_window": WINDOW}),
    "llava_qwen2": Sort(
        kind="llava", siglip=True, text="qwen2", tokenizer="qwen", chat=CHAT_ML, ends=("<|endoftext|>",), options=_FULL
    ),
    "llava_next_vicuna": Sort(kind="llava_next"),
    "llava_next_mistral": Sort(kind="llava_next", text="mistral", chat=INSTRUCT, text_options={"sliding_window": None}),
    "llava_next_llama3": Sort(
        kind="llava_next", tokenizer="bytes", chat=LLAMA_3, in_tokenizer=True, ends=("<|end_of_text|>",)
    ),
    "llava_next_siglip": Sort(
        kind="llava_next",
        siglip=True,
        text="qwen2",
        tokenizer="qwen",
        chat=CHAT_ML,
        ends=("<|endoftext|>",),
        options=_FULL,
    ),
    "llava_onevision": Sort(
        kind="llava_onevision",
        siglip=True,
        text="qwen2",
        tokenizer="qwen",
        chat=CHAT_ML,
        ends=("<|endoftext|>",),
        options=_FULL,
        text_options={"tie_word_embeddings": True},
    ),
    "llava_onevision_window": Sort(
        kind="llava_onevision",
        siglip=True,
        text="qwen2",
        tokenizer="qwen",
        chat=CHAT_ML,
        options=_FULL,
        text_options={"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
}


def save_family(folder: Path, name: str, *, older: bool = False, seed: int = 4) -> Path:
    """Write the LLaVA `name` of SORTS to `folder` and return it. older: in the format of the first years of the hub."""
    sort = SORTS[name]
    tokenizer = _TOKENIZERS[sort.tokenizer]()
    config = _config(sort, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    ends = [tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, sort.ends)]
    # As the chat models of the hub: the end of the base model first, and sampling.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        eos_token_id=ends[::-1] if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    processor = _processor(sort, tokenizer)
    if sort.in_tokenizer:
        tokenizer.chat_template = sort.chat
        processor.chat_template = None
    processor.save_pretrained(folder)
    if older:
        _make_older(folder, sort)
    return folder


def _config(sort: Sort, tokenizer: Any) -> Any:
    vision = {**_SMALL, **_VISION}
    tower = SiglipVisionConfig(**vision, vision_use_head=False) if sort.siglip else CLIPVisionConfig(**vision)
    texts: dict[str, Callable[..., Any]] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    text = texts[sort.text](
        **{**_SMALL, **_TEXT, **sort.text_options},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    if sort.kind == "llava":
        return LlavaConfig(vision_config=tower, text_config=text, **ids, **sort.options)
    tiles = {"image_grid_pinpoints": GRIDS}
    if sort.kind == "llava_next":
        return LlavaNextConfig(vision_config=tower, text_config=text, **ids, **tiles, **sort.options)
    ids["video_token_index"] = tokenizer.convert_tokens_to_ids("<video>")
    return LlavaOnevisionConfig(vision_config=tower, text_config=text, **ids, **tiles, **sort.options)


def _processor(sort: Sort, tokenizer: Any) -> Any:
    square = {"height": SIDE, "width": SIDE}
    if sort.kind == "llava":
        images = (
            SiglipImageProcessor(size=square)
            if sort.siglip
            else CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
        )
        return LlavaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=sort.chat)
    if sort.kind == "llava_next":
        tiles = LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=GRIDS, do_pad=True
        )
        return LlavaNextProcessor(image_processor=tiles, tokenizer=tokenizer, chat_template=sort.chat)
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=GRIDS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=sort.chat,
    )


def _corpus() -> list[str]:
    text = compose({"gender": "female", "upper_color": "red", "upper_type": "coat", "hair": "long"})
    return [text, get_template("scgi").prompt()]


def _trained(size: int, before: Any, special: list[str], alphabet: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Return the vocabulary and the merges of a BPE trained on captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = before
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _sentencepiece() -> Any:
    """Return a tokenizer like Llama's: words begin with a block, other characters are bytes."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({char for text in _corpus() for char in text if char.isalnum() or char in ".,:[]"})
    # Punctuation is on its own, as in SentencePiece.
    before = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    vocabulary, merges = _trained(520, before, special, letters)
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, pad_token="<pad>", model_max_length=2048)
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    return tokenizer


def _qwen(eos: str = "<|im_end|>", others: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>")) -> Any:
    """Return a byte-level tokenizer like Qwen2's, which has no start token."""
    vocabulary, merges = _trained(
        400, pre_tokenizers.ByteLevel(add_prefix_space=False), [], sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, eos_token=eos, pad_token=others[0], unk_token=others[0], model_max_length=2048
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (*others, eos, "<image>", "<video>")])
    return tokenizer


def _llama3() -> Any:
    """Return a byte-level tokenizer like Llama 3's, whose chat template writes the start token itself."""
    from tokenizers import decoders, processors
    from transformers import PreTrainedTokenizerFast

    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    special = [begin, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", end, "<image>"]
    vocabulary, merges = _trained(
        400, pre_tokenizers.ByteLevel(add_prefix_space=False), special, sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end, model_max_length=2048
    )


_TOKENIZERS: Final[dict[str, Callable[[], Any]]] = {"sentencepiece": _sentencepiece, "qwen": _qwen, "bytes": _llama3}


def _make_older(folder: Path, sort: Sort) -> None:
    """Rewrite a folder as transformers 4 wrote it: names of the weights, and settings of the processor in two files."""
    tensors = load_file(folder / "model.safetensors")
    older = {_older_name(name): value.clone() for name, value in tensors.items()}
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    images = settings.pop("image_processor")
    images["processor_class"] = settings["processor_class"]
    settings.pop("video_processor", None)
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    if sort.kind == "llava_onevision":
        path.write_text(json.dumps(settings))
    else:
        path.unlink()
    template = folder / "chat_template.jinja"
    if template.exists():
        if sort.in_tokenizer:
            tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
            tokenizer["chat_template"] = template.read_text()
            (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        else:
            (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
        template.unlink()


def _older_name(name: str) -> str:
    name = name.removeprefix("model.")
    for newer, older in (
        ("language_model.model.", "language_model.model."),
        ("language_model.lm_head", "language_model.lm_head"),
        ("language_model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
        ("vision_tower.vision_model.", "vision_tower.vision_model."),
        ("vision_tower.", "vision_tower.vision_model."),
    ):
        if name.startswith(newer):
            return older + name.removeprefix(newer)
    return name
