"""Prompts around learnable words, encoded at their real length.

A composed prompt is start + prefix + words + suffix + end. CLIP's text tower is causal, so the result
at the real length (8 tokens with one word) equals that at 77 tokens up to rounding.

Shapes: B batch, N learnable words, T tokens of the whole prompt, W text width, D joint width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from reid.config.scgi import PromptEnd
from reid.config.train import TrainConfig
from reid.models.backbone import Backbone, context_of, tokenizer_of

PREFIX: Final = "A photo of a"


class ScgiPrompts(NamedTuple):
    """CLIP-SCGI's prompts. suffix: what follows S* in the composed prompt. fixed: the prompt of fused inference."""

    suffix: str
    fixed: str


SCGI_PROMPTS: Final[Mapping[PromptEnd, ScgiPrompts]] = {
    "person": ScgiPrompts("person", f"{PREFIX} person"),
    "person.": ScgiPrompts("person.", f"{PREFIX} person."),
    "mixed": ScgiPrompts("person.", f"{PREFIX} person"),
}


class ComposedPrompt(nn.Module):
    """`PREFIX` + learnable words + a suffix; prefix and suffix are frozen embeddings of the backbone."""

    prefix_1TW: Tensor
    suffix_1TW: Tensor

    def __init__(self, backbone: Backbone, suffix: str) -> None:
        super().__init__()
        tokenizer = backbone.tokenizer
        self.register_buffer("prefix_1TW", _embed(backbone, [tokenizer.start, *tokenizer.words(PREFIX)]))
        self.register_buffer("suffix_1TW", _embed(backbone, [*tokenizer.words(suffix), tokenizer.end]))

    def embeddings(self, words_BNW: Tensor) -> Tensor:
        """Return the token embeddings [B, T, W] of the prompt around `words`; the end token is last."""
        batch = len(words_BNW)
        parts = [self.prefix_1TW.expand(batch, -1, -1), words_BNW, self.suffix_1TW.expand(batch, -1, -1)]
        return torch.cat([part.to(words_BNW.dtype) for part in parts], dim=1)

    def forward(self, backbone: Backbone, words_BNW: Tensor) -> Tensor:
        """Return the encoded prompt [B, T, D], every token projected; [:, -1] is CLIP's text feature."""
        return backbone.text_tokens(self.embeddings(words_BNW))


def prompt_problems(config: TrainConfig) -> Iterator[str]:
    """Yield a problem if the learned prompts of CLIP-ReID are too long for the text tower. Builds no model."""
    if config.method != "clip_reid":
        return
    prompts, tokenizer, context = config.prompts, tokenizer_of(config.backbone), context_of(config.backbone)
    fixed = 2 + len(tokenizer.words(PREFIX)) + len(tokenizer.words(f"{prompts.noun}."))  # 2: start and end
    room = context - fixed
    if room < 1:
        yield (
            f"train.prompts.noun makes a prompt of {fixed} tokens without the learned words, and the text tower takes "
            f"{context}: set train.prompts.noun to one word, such as train.prompts.noun=person"
        )
    elif prompts.words > room:
        yield (
            f"train.prompts.words={prompts.words} do not fit into the {context} tokens of the text tower: "
            f"set train.prompts.words={room} or lower (published: 4)"
        )


@torch.no_grad()
def _embed(backbone: Backbone, ids: list[int]) -> Tensor:
    return backbone.embed_ids(torch.tensor([ids])).clone()


@torch.no_grad()
def fixed_prompt(backbone: Backbone, text: str) -> Tensor:
    """Return the encoded tokens [1, T, D] of a fixed text. They are constant because the text tower is frozen."""
    ids, _ = backbone.token_ids([text])
    return backbone.text_tokens(backbone.embed_ids(ids.to(backbone.clip.positional_embedding.device)))
