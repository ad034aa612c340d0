"""Interpolation of the image tower with its weights before training (WiSE-FT, arXiv:2109.01903).

Only the image tower is interpolated: new modules have no earlier weights that mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from reid.tasks.base import Task


class StartWeights:
    """A copy of the image tower of `task`, before training, in main memory.

    share: that of the trained weights in the interpolation. Nothing is copied or changed if it is 1.
    """

    def __init__(self, task: Task, share: float) -> None:
        self.share = share
        self._tensors: Mapping[str, Tensor] = {} if share == 1 else _copied(task, "cpu")

    @torch.no_grad()
    def blend(self, task: Task) -> None:
        """Replace the image tower of `task` by share * its weights + (1 - share) * those before training."""
        tower = _image_tower(task)
        for name, start in self._tensors.items():
            tower[name].copy_(torch.lerp(start.to(tower[name].device), tower[name], self.share))

    @contextmanager
    def blended(self, task: Task) -> Iterator[None]:
        """Blend `task` in the block; its trained weights are restored to the bit."""
        trained = {} if self.share == 1 else _copied(task)
        self.blend(task)
        try:
            yield
        finally:
            tower = _image_tower(task)
            with torch.no_grad():
                for name, value in trained.items():
                    tower[name].copy_(value)


def _copied(task: Task, device: str | None = None) -> dict[str, Tensor]:
    return {name: value.detach().to(device or value.device, copy=True) for name, value in _image_tower(task).items()}


def _image_tower(task: Task) -> dict[str, Tensor]:
    """Return the floating-point parameters and buffers of the image tower."""
    state = task.backbone.clip.visual.state_dict()
    return {name: value for name, value in state.items() if value.is_floating_point()}
