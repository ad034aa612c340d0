"""Prompts of a batch as the language model reads them: embedded, each row with its own length and position ids.

Shape legend: B batch, N columns, D width, G guessed tokens.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Embedded prompts, padded on the right.

    embeds [B, N, D], positions [B, N]: the tokens and their position ids. counts [B]: number of tokens of each row; the
    columns after them are padding, which no token attends to, because attention is causal. after [B]: the position id
    of the first reply token; it exceeds the count where tokens of the prompt were left out.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    counts: NDArray[np.int64]
    after: NDArray[np.int64]

    def followed_by(self, tokens_GD: torch.Tensor) -> Prompts:
        """Return the prompts with the same embedded tokens written after the last token of each row."""
        batch, columns, width = self.embeds.shape
        more = len(tokens_GD)
        device = self.embeds.device
        embeds = self.embeds.new_zeros(batch, columns + more, width)
        embeds[:, :columns] = self.embeds
        positions = self.positions.new_zeros(batch, columns + more)
        positions[:, :columns] = self.positions
        rows_B1 = torch.arange(batch, device=device)[:, None]
        steps_G = np.arange(more)
        places_BG = torch.from_numpy(self.counts[:, None] + steps_G).to(device)
        embeds[rows_B1, places_BG] = tokens_GD
        positions[rows_B1, places_BG] = torch.from_numpy(self.after[:, None] + steps_G).to(device)
        return Prompts(embeds=embeds, positions=positions, counts=self.counts + more, after=self.after + more)

    def padded_left(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return embeddings, attention mask and position ids with the padding on the left, as `generate` needs."""
        columns = self.embeds.shape[1]
        shift_B1 = columns - self.counts[:, None]
        from_BN = torch.from_numpy((np.arange(columns) - shift_B1) % columns).to(self.embeds.device)
        mask_BN = torch.from_numpy((np.arange(columns) >= shift_B1).astype(np.int64)).to(self.embeds.device)
        embeds = self.embeds.take_along_dim(from_BN[:, :, None], dim=1)
        return embeds, mask_BN, self.positions.take_along_dim(from_BN, dim=1)
