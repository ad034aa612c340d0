"""The ``prompts`` stage, the first stage of CLIP-ReID: learn N words per identity with both towers frozen.

Image features are computed once. The words are then trained in batches, to align the prompt of each identity with its
images, by supcon(i2t) + supcon(t2i) (processor/processor_clipreid_stage1.py). Writes ``prompts.safetensors`` with
``words`` [C, N, W] and ``features`` [C, D]; the second stage uses the features.

Shapes: M training images, B batch, C identities, N words, W text width, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.artifacts.store import ArtifactRef, Produced
from data.errors import ConfigError, raise_problems
from data.progress import ProgressFn, silent
from data.stages.stage import Ingredients, RunContext, Stage
from reid.config.train import PromptConfig, TrainConfig
from reid.inputs.captions import weights_identity
from reid.inputs.embed import embed
from reid.models.backbone import Backbone, build_backbone, seeded
from reid.models.prompts import ComposedPrompt, prompt_problems
from reid.tasks.base import Preprocess, preprocess_of
from reid.tasks.losses import contrastive_loss, finite_values
from reid.training.checkpoint import CheckpointState, restore_checkpoint, save_checkpoint

STAGE_VERSION: Final = 2
_FILE: Final = "prompts.safetensors"
_ENCODE_BATCH: Final = 256
_CHECKPOINT_EPOCHS: Final = 10
# Separates the order of the images from other random streams seeded by (seed, epoch).
_ORDER_STREAM: Final = 2


class PromptLearner(nn.Module):
    """Learnable words for each identity, used in the prompt "A photo of a [X].. person."."""

    def __init__(self, backbone: Backbone, identities: int, words: int, noun: str = "person") -> None:
        super().__init__()
        self.prompt = ComposedPrompt(backbone, f"{noun}.")
        self.words_CNW = nn.Parameter(torch.empty(identities, words, backbone.text_width))
        nn.init.normal_(self.words_CNW, std=0.02)

    def forward(self, backbone: Backbone, labels_B: Tensor) -> Tensor:
        """Return the text features [B, D] of the prompts of identities `labels_B`."""
        return self.prompt(backbone, self.words_CNW[labels_B])[:, -1]


@dataclass(frozen=True, kw_only=True)
class PromptData:
    """Training images of the first stage. features_MD: from the frozen image tower. labels_M: class numbers."""

    features_MD: Tensor
    labels_M: Tensor


@dataclass(frozen=True, kw_only=True)
class PromptStage(Stage):
    """Learn the prompts of all training identities, with both towers frozen.

    config: the training run. pixels: uint8 [all images, H, W, 3]. positions_M, labels_M: row in `pixels` and class
    number of each training image. device: where to compute.

    `make` raises ConfigError when the prompts are too long for the text tower.
    """

    name: ClassVar[str] = "prompts"
    config: TrainConfig
    pixels: NDArray[np.uint8] = field(repr=False)
    positions_M: NDArray[np.int64] = field(repr=False)
    labels_M: NDArray[np.int64] = field(repr=False)
    device: str

    def ingredients(self, run: RunContext) -> Ingredients:
        """Return the training images, the settings of the prompts and the weights."""
        config = self.config
        raise_problems("training", prompt_problems(config), ConfigError)
        return {
            "images": run.images.contents()["train"],
            "held_out": config.validation.identity() if config.validation.holds_out else None,
            "config": config.prompts.identity(),
            "backbone": config.backbone.identity(),
            "weights": weights_identity(run.store, config.backbone, config.seed),
            "seed": config.seed,
            "version": STAGE_VERSION,
        }

    def produce(self, run: RunContext, folder: Path, scratch: Path) -> Produced:
        """Learn the words, and write them together with the text features of all identities."""
        config = self.config
        backbone = build_backbone(config.backbone, seed=config.seed).to(self.device).eval()
        backbone.freeze_text()
        preprocess = preprocess_of(config.backbone)
        data = PromptData(
            features_MD=image_features(
                backbone, self.pixels, self.positions_M, preprocess, device=self.device, progress=run.progress
            ),
            labels_M=torch.from_numpy(self.labels_M).to(self.device),
        )
        learner = learn_prompts(backbone, data, config.prompts, seed=config.seed, folder=scratch, progress=run.progress)
        tensors = {"words": learner.words_CNW.detach(), "features": all_texts(backbone, learner)}
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / _FILE)
        return Produced()


def load_texts(prompts: ArtifactRef) -> Tensor:
    """Return the text features [C, D] of all identities, read from an artifact of this stage."""
    return load_file(prompts.folder / _FILE)["features"]


def image_features(
    backbone: Backbone,
    pixels: NDArray[np.uint8],
    positions: NDArray[np.int64],
    preprocess: Preprocess,
    *,
    device: str,
    progress: ProgressFn,
) -> Tensor:
    """Return CLIP's image features [M, D] of the images at `positions`, without augmentation."""

    def encode(images_BCHW: Tensor) -> Tensor:
        return backbone.image(images_BCHW).joint_BD

    rows = embed(
        encode,
        pixels,
        positions,
        batch_size=_ENCODE_BATCH,
        device=device,
        mean=preprocess.mean,
        std=preprocess.std,
        progress=progress,
    )
    return torch.from_numpy(rows).to(device)


def learn_prompts(
    backbone: Backbone,
    data: PromptData,
    config: PromptConfig,
    *,
    seed: int,
    folder: Path,
    progress: ProgressFn = silent,
) -> PromptLearner:
    """Learn the words. A killed run continues from the last checkpoint in `folder` and gives identical results."""
    identities = int(data.labels_M.max()) + 1
    with seeded(seed):
        learner = PromptLearner(backbone, identities, config.words, config.noun).to(data.features_MD.device)
    group = {"params": [learner.words_CNW], "names": ["words_CNW"]}
    optimizer = torch.optim.Adam([group], lr=config.lr, weight_decay=config.weight_decay)
    state = restore_checkpoint(folder, learner, optimizer, CheckpointState)
    for epoch in range(state.step, config.epochs):
        loss = _epoch(backbone, learner, optimizer, data, config, epoch=epoch, seed=seed)
        progress(epoch + 1, config.epochs, f"prompts, loss {loss:.3f}")
        if (epoch + 1) % _CHECKPOINT_EPOCHS == 0:
            save_checkpoint(folder, learner, optimizer, CheckpointState(step=epoch + 1))
    return learner


def _epoch(
    backbone: Backbone,
    learner: PromptLearner,
    optimizer: torch.optim.Optimizer,
    data: PromptData,
    config: PromptConfig,
    *,
    epoch: int,
    seed: int,
) -> float:
    optimizer.param_groups[0]["lr"] = prompt_rate(epoch, config)
    order = np.random.default_rng([seed, epoch, _ORDER_STREAM]).permutation(len(data.labels_M))
    losses = []
    for start in range(0, len(order), config.batch):
        rows = torch.from_numpy(order[start : start + config.batch]).to(data.labels_M.device)
        terms = prompt_terms(data.features_MD[rows], data.labels_M[rows], backbone, learner, config.temperature)
        loss = terms["i2t"] + terms["t2i"]
        losses.append(finite_values(loss, terms, f"the end of epoch {epoch + 1} of the prompts")["loss"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sum(losses) / len(losses)


def prompt_terms(
    image_BD: Tensor, labels_B: Tensor, backbone: Backbone, learner: Callable[..., Tensor], temperature: float
) -> dict[str, Tensor]:
    """Return supcon(i2t) and supcon(t2i) between images and the prompts of their identities; the loss is the sum."""
    text_BD = learner(backbone, labels_B)
    return {
        "i2t": contrastive_loss(image_BD, text_BD, labels_B, labels_B, temperature),
        "t2i": contrastive_loss(text_BD, image_BD, labels_B, labels_B, temperature),
    }


def prompt_rate(epoch: int, config: PromptConfig) -> float:
    """Return the learning rate of `epoch` (counted from 0): linear warm-up, then a cosine over all epochs.

    As in CLIP-ReID (solver/cosine_lr.py), which counts the first epoch as 1 and does not shift the cosine by the
    warm-up.
    """
    number = epoch + 1
    if number < config.warmup_epochs:
        return config.lr_warmup + number * (config.lr - config.lr_warmup) / config.warmup_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * number / config.epochs))
    return config.lr_min + (config.lr - config.lr_min) * cosine


@torch.no_grad()
def all_texts(backbone: Backbone, learner: PromptLearner) -> Tensor:
    """Return the features [C, D] of all identities' prompts."""
    labels_C = torch.arange(len(learner.words_CNW), device=learner.words_CNW.device)
    return torch.cat([learner(backbone, part) for part in labels_C.split(_ENCODE_BATCH)])
