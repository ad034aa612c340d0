"""The configs of a variant and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from data.config import C, build_config
from flows.overrides import set_key
from flows.recipes import Recipe, tiny_clip_reid
from flows.study.plan import StudyConfig, Variant
from reid.config.published import published_training
from reid.config.train import Method, TrainConfig


def training_of(variant: Variant, base: TrainConfig, seed: int) -> TrainConfig:
    """Return the train config of one variant; `seed` is added to the seed of `base`, the config of the recipe."""
    changes = {"seed": base.seed + seed, **_method_changes(variant.method, base)}
    if variant.stretch != 1:
        schedule, factor = base.schedule, variant.stretch
        changes["schedule.epochs"] = factor * schedule.epochs
        changes["schedule.warmup_epochs"] = factor * schedule.warmup_epochs
        changes["schedule.milestones"] = [factor * milestone for milestone in schedule.milestones]
    return _changed(base, changes | dict(variant.changes), f"study, variant {variant.name}")


def _method_changes(method: Method, base: TrainConfig) -> dict[str, Any]:
    """Return the settings of a method besides the shared schedule: dotted key of TrainConfig -> value.

    CLIP-ReID uses the loss weights and the first stage of its own recipe, except for settings that the user has
    changed. The baseline uses the weights of CLIP-SCGI, so that the two differ only by the loss terms of CLIP-SCGI. One
    of these is the distillation, which reads captions.
    """
    if method == "clip_scgi":
        return {"method": method}
    if method == "clip_baseline":
        return {"method": method, "loss.distill_weight": 0.0}
    name = base.backbone.name
    own = tiny_clip_reid() if name == "tiny" else published_training("clip_reid", name)
    found = {"method": method, **_unset(base, own, "loss"), **_unset(base, own, "prompts")}
    return found | {"loss.distill_weight": 0.0}


def _unset(base: TrainConfig, own: TrainConfig, group: Literal["loss", "prompts"]) -> dict[str, Any]:
    """Return the settings of `own` in one group, as dotted keys, for those that are at their default in `base`."""
    given, default, wanted = (getattr(config, group) for config in (base, TrainConfig(), own))
    plain = (part.model_dump(mode="json") for part in (given, default, wanted))
    rows = zip(*(part.items() for part in plain), strict=True)
    return {f"{group}.{name}": value for (name, set_to), (_, usual), (_, value) in rows if set_to == usual}


def recipe_of(recipe: Recipe, config: StudyConfig, seed: int) -> Recipe:
    """Return the recipe of one seed, with its own people if `config.resample` is set and the dataset supports it."""
    if not config.resample:
        return recipe
    if recipe.synthetic is not None and not recipe.data.root:
        return _changed(recipe, {"synthetic.seed": recipe.synthetic.seed + seed}, "study")
    if recipe.data.reader == "pku_reid":
        return _changed(recipe, {"data.split_seed": recipe.data.split_seed + seed}, "study")
    return recipe


def _changed(config: C, changes: Mapping[str, Any], subject: str) -> C:
    """Return `config` with dotted keys set, after validation. subject: begins the message if it is not valid."""
    values = config.model_dump(mode="json")
    for key, value in changes.items():
        set_key(values, key, value)
    return build_config(type(config), values, subject)
