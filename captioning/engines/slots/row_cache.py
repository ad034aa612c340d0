"""The key-value cache of slot filling: each row of a batch writes at its own position.

A row overwrites its wrong guesses, so the cache contains only the caption. Memory for the longest caption is allocated
once, so no pass copies the cache, as the growing cache of transformers does.

Shape legend: B batch, H heads, D width of a head, L prompt tokens, C tokens per chunk, R room, U columns in use.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(kw_only=True)
class _Target:
    """Where all layers write.

    columns: the column of each token [B, C]; None for the prompt. used: number of columns that attention reads.
    """

    columns: torch.Tensor | None = None
    used: int


class RowCache(Cache):
    """A cache for `room` tokens per row in each of `layers` layers. The prompt is written first, then chunks."""

    def __init__(self, layers: int, room: int) -> None:
        self._room = room
        self._target = _Target(used=room)
        super().__init__(layers=[_RowLayer(self._target, room) for _ in range(layers)])

    def aim(self, places_BC: torch.Tensor, dtype: torch.dtype, used: int | None) -> torch.Tensor:
        """Set the positions `places_BC` of the next chunk and return its additive attention mask [B, 1, C, U].

        A token attends to the columns up to its own. Positions beyond the room belong to padding, which no token
        attends to. used: number of columns to read; all of them by default.
        """
        used = min(used or self._room, self._room)
        self._target.used = used
        self._target.columns = places_BC.clamp(max=self._room - 1)
        hidden = torch.arange(used, device=places_BC.device) > places_BC[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=places_BC.device).masked_fill_(
            hidden, torch.finfo(dtype).min
        )


class _RowLayer(DynamicLayer):
    def __init__(self, target: _Target, room: int) -> None:
        super().__init__()
        self._target = target
        self._room = room

    def update(self, keys_BHCD: torch.Tensor, values_BHCD: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Write a chunk and return the keys and values that it attends to."""
        columns_BC = self._target.columns
        if columns_BC is None:
            self.keys, self.values = (self._with_room(prompt) for prompt in (keys_BHCD, values_BHCD))
            self.is_initialized = True
            return keys_BHCD, values_BHCD
        rows_B1 = torch.arange(len(columns_BC), device=columns_BC.device)[:, None]
        self.keys[rows_B1, :, columns_BC] = keys_BHCD.transpose(1, 2)
        self.values[rows_B1, :, columns_BC] = values_BHCD.transpose(1, 2)
        return self.keys[:, :, : self._target.used], self.values[:, :, : self._target.used]

    def _with_room(self, prompt_BHLD: torch.Tensor) -> torch.Tensor:
        batch, heads, length, width = prompt_BHLD.shape
        # Zeros, because a masked column is multiplied by 0, and 0 times NaN is NaN.
        whole = prompt_BHLD.new_zeros(batch, heads, self._room, width)
        whole[:, :, :length] = prompt_BHLD
        return whole

    def get_seq_length(self) -> int:
        """Return 0: every chunk comes with its positions."""
        return 0
