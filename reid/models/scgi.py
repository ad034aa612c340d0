"""CLIP-SCGI's two modules: caption-guided inversion (CGI) and contextual feature fusion (CFF).

arXiv:2410.09382 has no released code; the structure follows its description, and what it leaves open is a setting in
`ScgiConfig`. All attention is over the tokens of one image: no operation mixes images of a batch.

Shapes: B batch, P patches, L image tokens (class token first), T text tokens, K inversion tokens, Q tokens that attend,
D joint width, W text width, H heads, C width of one head.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH: Final = 64


class Attention(nn.Module):
    """Multi-head attention over [batch, tokens, width] tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BQD: Tensor, context_BLD: Tensor) -> Tensor:
        """Return [B, Q, D]: every token of `x` attends to all tokens of `context`."""
        query_BHQC = self._split(self.query(x_BQD))
        key_BHLC = self._split(self.key(context_BLD))
        value_BHLC = self._split(self.value(context_BLD))
        mixed_BHQC = F.scaled_dot_product_attention(query_BHQC, key_BHLC, value_BHLC)
        return self.out(mixed_BHQC.transpose(1, 2).flatten(2))

    def _split(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        return x_BLD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them; the hidden width is four times the input width."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class CrossBlock(nn.Module):
    """Q' = Q + CrossAttn(LN Q, LN V); P = Q' + FFN(Q'), or Q' + FFN(LN Q') with `feed_norm`."""

    def __init__(self, width: int, *, feed_norm: bool = False) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm_feed = nn.LayerNorm(width) if feed_norm else nn.Identity()
        self.feed = FeedForward(width)

    def forward(self, query_BQD: Tensor, context_BLD: Tensor) -> Tensor:
        """Return the refined tokens [B, Q, D]."""
        query_BQD = query_BQD + self.attention(self.norm_query(query_BQD), self.norm_context(context_BLD))
        return query_BQD + self.feed(self.norm_feed(query_BQD))


class SelfBlock(nn.Module):
    """A pre-norm transformer block: x + SelfAttn(LN x), then x + FFN(LN x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = FeedForward(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the mixed tokens [B, T, D]."""
        normed_BTD = self.norm_attention(x_BTD)
        x_BTD = x_BTD + self.attention(normed_BTD, normed_BTD)
        return x_BTD + self.feed(self.norm_feed(x_BTD))


def mlp3(width: int, out: int) -> nn.Sequential:
    """Return three linear layers with ReLU between them: [.., width] -> [.., out]."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


class CaptionGuidedInversion(nn.Module):
    """CGI: turn an image and the feature of its caption into one pseudo-word S* for the prompt.

    S* = MLP3(v~_cls) + MLP3(mean of K learnable tokens after cross-attention to v~_patches), where v~ = v * t. With
    `unit_inputs`, each token of v, and t, are first scaled to length one. feed_norm: see `CrossBlock`.
    """

    def __init__(
        self,
        width: int,
        word_width: int,
        *,
        inversion_tokens: int,
        depth: int,
        unit_inputs: bool = False,
        feed_norm: bool = False,
    ) -> None:
        super().__init__()
        self.unit_inputs = unit_inputs
        # The attribute name is a key of model.safetensors, so it stays.
        self.queries_KD = nn.Parameter(torch.randn(inversion_tokens, width) * width**-0.5)
        self.blocks = nn.ModuleList(CrossBlock(width, feed_norm=feed_norm) for _ in range(depth))
        self.to_global = mlp3(width, word_width)
        self.to_local = mlp3(width, word_width)

    def forward(self, tokens_BLD: Tensor, caption_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pseudo-word [B, W] and the refined image tokens v~ [B, L, D]."""
        if self.unit_inputs:
            tokens_BLD, caption_BD = F.normalize(tokens_BLD, dim=-1), F.normalize(caption_BD, dim=-1)
        refined_BLD = tokens_BLD * caption_BD[:, None]
        class_BD, patches_BPD = refined_BLD[:, 0], refined_BLD[:, 1:]
        found_BKD = self.queries_KD.expand(len(tokens_BLD), -1, -1)
        for block in self.blocks:
            found_BKD = block(found_BKD, patches_BPD)
        return self.to_global(class_BD) + self.to_local(found_BKD.mean(1)), refined_BLD


class ContextualFeatureFusion(nn.Module):
    """CFF: prompt tokens attend to the image, then to each other; the end token is the embedding.

    One cross-attention block (Q prompt, K/V image) and `depth` self-attention blocks (published: 2). The paper
    does not say where the embedding is read; here it is the end token.
    """

    def __init__(self, width: int, *, depth: int) -> None:
        super().__init__()
        self.cross = CrossBlock(width)
        self.blocks = nn.ModuleList(SelfBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, prompt_BTD: Tensor, image_BLD: Tensor) -> Tensor:
        """Return the fused embedding [B, D]; the prompt's last token is its end token."""
        x_BTD = self.cross(prompt_BTD, image_BLD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD[:, -1])
