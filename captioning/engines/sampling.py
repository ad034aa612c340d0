"""Sampling with a seed of its own for each row of a batch, so that a reply does not depend on who else is in it.

`generate` with `do_sample` draws all rows from one global generator. Here noise is added to the scores and the largest
is taken: with Gumbel noise that is a draw from the softmax (the Gumbel-max trick).
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case; B batch, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding draw each row at `temperature`, from a generator that its seed starts."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        # On the CPU: the same noise on every device.
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, _: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] with the next noise of each row."""
        size = scores_BV.shape[1]
        noise_BV = torch.stack([-torch.empty(size).exponential_(generator=row).log() for row in self._generators])
        return scores_BV.float() / self._temperature + noise_BV.to(scores_BV.device)
