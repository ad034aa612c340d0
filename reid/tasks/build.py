"""Build the task of a config."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.process.environment import exact_float32
from reid.config.train import TrainConfig
from reid.models.backbone import build_backbone, seeded
from reid.tasks.base import Task
from reid.tasks.image import BaselineTask, ClipReidTask
from reid.tasks.scgi import ScgiTask


@exact_float32(torch)
def build_task(
    config: TrainConfig, *, identities: int, cameras: Sequence[int] = (), texts_CD: Tensor | None = None
) -> Task:
    """Build the task of `config` on the CPU, CLIP's weights loaded, new weights drawn from the config's seed.

    Args:
        config: the run.
        identities: number of identities in the training set.
        cameras: cameras of the training set; used by tasks with a camera embedding (sie) only.
        texts_CD: features of the learned prompts, [identities, D], for clip_reid.

    Raises:
        WeightsError: the backbone's weights are unavailable or unusable.
    """
    backbone = build_backbone(config.backbone, seed=config.seed)
    with seeded(config.seed):
        if config.method == "clip_scgi":
            return ScgiTask(backbone, config, identities=identities, cameras=cameras)
        if config.method == "clip_reid":
            return ClipReidTask(backbone, config, identities=identities, cameras=cameras, texts_CD=texts_CD)
        return BaselineTask(backbone, config, identities=identities, cameras=cameras)
