"""Sampling with one seed per row of a batch, so that a reply does not depend on the other rows.

`generate` with `do_sample` samples all rows from one global generator. Here Gumbel noise is added to the scores and the
largest one is chosen, which samples from the softmax (the Gumbel-max trick).
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case; B batch, V vocabulary

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor


class GumbelNoise(LogitsProcessor):
    """Logits processor that makes greedy decoding sample each row at `temperature`, with a generator per seed."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        # Generators on the CPU give the same noise on every device.
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature

    def __call__(self, _: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V] plus the next noise of each row."""
        size = scores_BV.shape[1]
        noise_BV = torch.stack([-torch.empty(size).exponential_(generator=row).log() for row in self._generators])
        return scores_BV.float() / self._temperature + noise_BV.to(scores_BV.device)
