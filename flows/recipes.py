"""Recipes: a run is a named function that returns one full config; the command line picks one and changes little."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from captioning.audit import AuditConfig
from captioning.config import CaptionConfig
from data.config import RUNTIME, Config, build_config
from data.datasets import DatasetConfig
from data.errors import ConfigError, raise_problems
from data.synthetic import WorldConfig
from flows.report import ReportConfig
from flows.scale import ScaleConfig
from reid.config import BackboneConfig, ScgiConfig, ScheduleConfig, TrainConfig
from reid.config_augment import AugmentConfig
from reid.config_evaluate import EvaluateConfig


class Recipe(Config):
    """Everything that decides a run of caption-and-train."""

    name: str
    """What people call this run; part of no cache key."""
    data: DatasetConfig
    """Which images."""
    synthetic: WorldConfig | None = None
    """The synthetic people to draw where data.root is not given."""
    caption: CaptionConfig = CaptionConfig()
    """How images become captions."""
    audit: AuditConfig = AuditConfig()
    """When a caption is flagged."""
    train: TrainConfig = TrainConfig()
    """The method, its backbone and its training."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How the model is measured."""
    report: ReportConfig = ReportConfig()
    """What the page shows."""
    scale: Annotated[ScaleConfig, RUNTIME] = ScaleConfig()
    """How many processes caption and train."""


def tiny_training() -> TrainConfig:
    """Return CLIP-SCGI on the tiny CLIP: rates a hundred times the published ones, for a model that small."""
    return TrainConfig(
        schedule=ScheduleConfig(epochs=36, rate_clip=1e-3, rate_new=3e-3, warmup_epochs=4, milestones=(25, 32)),
        augment=AugmentConfig(pad=4, erase_probability=0.1),
        # Half of the batch trains CFF with the prompt it will have at test time.
        scgi=ScgiConfig(plain_share=0.5),
        checkpoint_every=50,  # about half a minute of two cores
    )


def demo() -> Recipe:
    """Synthetic people, the embedded captioner and the embedded CLIP: minutes on two cores, no download."""
    return Recipe(
        name="demo",
        data=DatasetConfig(name="demo"),
        synthetic=WorldConfig(seed=2024, train_identities=128, test_identities=40, images_per_camera=2, lookalikes=4),
        train=tiny_training(),
    )


def pku_reid() -> Recipe:
    """PKU-Reid in a folder of yours (set data.root), with the embedded models."""
    return Recipe(name="pku_reid", data=DatasetConfig(name="pku_reid", reader="pku_reid"), train=tiny_training())


def market1501() -> Recipe:
    """Market-1501 as published: captions by LLaVA-1.5-7B, CLIP-SCGI on ViT-B/16 (set data.root; needs a GPU)."""
    return Recipe(
        name="market1501",
        data=DatasetConfig(name="market1501", reader="market1501"),
        caption=CaptionConfig(model="llava-hf/llava-1.5-7b-hf"),
        train=TrainConfig(backbone=BackboneConfig(name="vit_b16", weights="openai", height=256, width=128)),
    )


RECIPES: Final[dict[str, Callable[[], Recipe]]] = {recipe.__name__: recipe for recipe in (demo, pku_reid, market1501)}


def build_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe `name` with settings changed by ``key=value`` texts.

    key: dotted, such as ``train.schedule.epochs``. value: JSON, or plain text where it is no JSON. Raises
    ConfigError that lists every problem.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    values = RECIPES[name]().model_dump(mode="json")
    problems = [problem for text in overrides if (problem := _override(values, text))]
    raise_problems(f"recipe {name}", problems)
    return build_config(Recipe, values, f"recipe {name}")


def _override(values: dict[str, Any], text: str) -> str | None:
    """Set one dotted key in nested `values`; return what is wrong with it, if anything."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        return f"{text!r} is no setting; write key=value, such as train.schedule.epochs=20"
    *path, last = key.split(".")
    here: Any = values
    for depth, part in enumerate(path):
        if here.get(part) is None and part in here:
            here[part] = {}
        here = here.get(part)
        if not isinstance(here, dict):
            return f"{'.'.join(path[: depth + 1])}: no such group of settings"
    here[last] = _parse(value)
    return None


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
