"""The key-value cache of slot filling: each row of a batch writes at its own position.

A row overwrites its wrong guesses, so the cache contains only the caption. Memory for the longest caption is allocated
once, so no pass copies the cache, as the growing cache of transformers does.

Shape legend: B batch, H heads, D width of a head, L prompt tokens, C tokens per chunk, R room, U columns in use.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from collections.abc import Sequence
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
    """A cache for `room` tokens per row of a language model with the config `text`. The prompt is written first."""

    def __init__(self, text: Any, room: int) -> None:
        self._room = room
        self._target = _Target(used=room)
        self._window: int | None = getattr(text, "sliding_window", None)
        self._kinds: Sequence[str] | None = getattr(text, "layer_types", None)
        super().__init__(layers=[_RowLayer(self._target, room) for _ in range(text.num_hidden_layers)])

    def aim(
        self, places_BC: torch.Tensor, dtype: torch.dtype, used: int | None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Set the positions `places_BC` of the next chunk and return its additive attention mask [B, 1, C, U].

        A token attends to the columns up to its own. Positions beyond the room belong to padding, which no token
        attends to. used: number of columns to read; all of them by default. A model whose layers see only a window of
        the last columns gets the mask of that window; if only some of them do, both masks by the kind of the layer.
        """
        used = min(used or self._room, self._room)
        self._target.used = used
        self._target.columns = places_BC.clamp(max=self._room - 1)
        columns_U = torch.arange(used, device=places_BC.device)
        last_B1C1 = places_BC[:, None, :, None]
        full = _additive(columns_U > last_B1C1, dtype)
        if self._window is None:
            return full
        seen = _additive((columns_U > last_B1C1) | (columns_U <= last_B1C1 - self._window), dtype)
        return seen if self._kinds is None else {"full_attention": full, "sliding_attention": seen}


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


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
