"""Published training settings of each method and backbone.

CLIP-ReID and the fine-tuned baseline: Syliz517/CLIP-ReID, configs/person/{vit,cnn}_{clipreid,base}.yml. CLIP-SCGI:
arXiv:2410.09382, which has no released code; as far as it says, its ResNet differs in the schedule only.
"""

from __future__ import annotations

from typing import Final, Literal

from reid.config.backbone import BackboneConfig
from reid.config.train import LossConfig, Method, PromptConfig, ScheduleConfig, TrainConfig

PublishedBackbone = Literal["vit_b16", "rn50"]

_CLIP_REID_SCHEDULES: Final[dict[str, ScheduleConfig]] = {
    # One rate for all: the heads learn as slowly as CLIP.
    "vit_b16": ScheduleConfig(lr_clip=5e-6, lr_new=5e-6, milestones=(30, 50)),
    "rn50": ScheduleConfig(
        epochs=120, lr_clip=3.5e-4, lr_new=3.5e-4, weight_decay=5e-4, warmup_factor=0.01, milestones=(40, 70)
    ),
}
_SCGI_SCHEDULES: Final[dict[str, ScheduleConfig]] = {
    "vit_b16": ScheduleConfig(),
    "rn50": ScheduleConfig(epochs=120, milestones=(40, 70)),
}


def published_training(method: Method, backbone: PublishedBackbone = "vit_b16") -> TrainConfig:
    """Return the settings of `method` with OpenAI's weights of `backbone`, at 256 x 128 pixels, batch 16 x 4."""
    shape = BackboneConfig(name=backbone, weights="openai", height=256, width=128)
    if method == "clip_scgi":
        return TrainConfig(backbone=shape, schedule=_SCGI_SCHEDULES[backbone])
    schedule = _CLIP_REID_SCHEDULES[backbone]
    if method == "clip_baseline":
        return TrainConfig(method=method, backbone=shape, schedule=schedule)
    return TrainConfig(
        method=method,
        backbone=shape,
        schedule=schedule,
        prompts=PromptConfig(epochs=120 if backbone == "vit_b16" else 60),
        loss=LossConfig(id_weight=0.25 if backbone == "vit_b16" else 1.0),
    )


def with_sie_and_olp(training: TrainConfig) -> TrainConfig:
    """Return a ViT's settings with the camera embedding (SIE) and overlapping patches (OLP) of CLIP-ReID's best."""
    return training.model_copy(update={"sie": 1.0, "backbone": training.backbone.model_copy(update={"stride": 12})})
