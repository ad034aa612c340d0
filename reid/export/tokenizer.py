"""tokenizer.json for other programs: text to token ids with start and end, cut to the context, padded with 0."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from data.files import atomic_path, write_json
from reid.models.backbone import Backbone

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
PADDING: Final = 0
_SENTENCES: Final = ("a woman in a red coat", "A man with a backpack, wearing blue jeans and a white shirt.", "person")


def write_tokenizer(folder: Path, backbone: Backbone) -> None:
    """Write tokenizer.json of the library `tokenizers`: ``Tokenizer.from_file(path).encode_batch(texts)``."""
    tokenizer, words = backbone.tokenizer.portable(), backbone.tokenizer
    names = {number: tokenizer.id_to_token(number) for number in (words.start, words.end, PADDING)}
    tokenizer.post_processor = TemplateProcessing(
        single=f"{names[words.start]} $A {names[words.end]}",
        special_tokens=[(names[words.start], words.start), (names[words.end], words.end)],
    )
    tokenizer.enable_truncation(backbone.context)
    tokenizer.enable_padding(pad_id=PADDING, pad_token=names[PADDING])
    with atomic_path(folder / TOKENIZER_FILE) as temporary:
        tokenizer.save(str(temporary))


def write_tokenizer_config(folder: Path, backbone: Backbone) -> None:
    """Write tokenizer.json, and the config with which transformers, and so open_clip, loads it."""
    write_tokenizer(folder, backbone)
    portable = backbone.tokenizer.portable()
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": backbone.context,
        "pad_token": portable.id_to_token(PADDING),
    }
    write_json(folder / TOKENIZER_CONFIG_FILE, values)


def example_ids(backbone: Backbone) -> Tensor:
    """Return token ids [3, context] of three sentences, as open_clip passes them."""
    ids, _ = backbone.token_ids(_SENTENCES)
    padded = torch.zeros(len(ids), backbone.context, dtype=torch.long)
    padded[:, : ids.shape[1]] = ids
    return padded
