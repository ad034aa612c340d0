"""Recipes: every one builds, settings are changed by dotted keys, mistakes are all named at once."""

from __future__ import annotations

import json

import pytest

from data.errors import ConfigError
from flows.recipes import RECIPES, Recipe, build_recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_and_survives_json(name):
    recipe = build_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert RECIPES[name].__doc__


METHODS = {"", "_clip_reid", "_baseline", "_rn50", "_clip_reid_rn50", "_baseline_rn50", "_clip_reid_sie_olp"}


def test_the_promised_recipes_exist():
    published = {f"{data}{method}" for data in ("market1501", "msmt17", "manifest") for method in METHODS}
    tiny = {f"{data}{method}" for data in ("demo", "pku_reid") for method in ("", "_clip_reid", "_baseline")}
    assert published | tiny <= set(RECIPES)


# As written in the public code (configs/person/{vit,cnn}_{clipreid,base}.yml) and, for CLIP-SCGI, in its paper:
# epochs, rate of CLIP, rate of new modules, milestones, weight decay, warm-up factor, weight of L_id, first stage.
PUBLISHED = {
    "": (60, 5e-6, 5e-5, (20, 40), 1e-4, 0.1, 1.0, None),
    "_clip_reid": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 0.25, 120),
    "_clip_reid_sie_olp": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 0.25, 120),
    "_baseline": (60, 5e-6, 5e-6, (30, 50), 1e-4, 0.1, 1.0, None),
    "_rn50": (120, 5e-6, 5e-5, (40, 70), 1e-4, 0.1, 1.0, None),
    "_clip_reid_rn50": (120, 3.5e-4, 3.5e-4, (40, 70), 5e-4, 0.01, 1.0, 60),
    "_baseline_rn50": (120, 3.5e-4, 3.5e-4, (40, 70), 5e-4, 0.01, 1.0, None),
}


@pytest.mark.parametrize("data", ["market1501", "msmt17", "manifest"])
@pytest.mark.parametrize("method", sorted(PUBLISHED))
def test_published_settings(data, method):
    train = build_recipe(f"{data}{method}").train
    epochs, rate_clip, rate_new, milestones, decay, warmup, id_weight, prompts = PUBLISHED[method]
    schedule, loss, backbone = train.schedule, train.loss, train.backbone
    assert (schedule.epochs, schedule.milestones, schedule.gamma) == (epochs, milestones, 0.1)
    assert (schedule.rate_clip, schedule.rate_new, schedule.bias_factor) == (rate_clip, rate_new, 2.0)
    assert (schedule.weight_decay, schedule.warmup_epochs, schedule.warmup_factor) == (decay, 10, warmup)
    assert (loss.id_weight, loss.triplet_weight, loss.contrast_weight) == (id_weight, 1.0, 1.0)
    assert (loss.margin, loss.smoothing) == (0.3, 0.1)
    assert (train.batch.identities, train.batch.images, train.batch.accumulate) == (16, 4, 1)
    assert (backbone.height, backbone.width, backbone.weights) == (256, 128, "openai")
    assert backbone.name == ("rn50" if "rn50" in method else "vit_b16")
    assert (train.sie, backbone.stride) == ((1.0, 12) if "olp" in method else (0.0, 0))
    assert train.method == ("clip_reid" if "reid" in method else "clip_baseline" if "base" in method else "clip_scgi")
    assert train.needs_captions == (train.method == "clip_scgi")
    if prompts is not None:
        first = train.prompts
        assert (first.epochs, first.batch, first.words, first.rate) == (prompts, 64, 4, 3.5e-4)
        assert (first.warmup_epochs, first.warmup_rate, first.rate_min, first.weight_decay) == (5, 1e-5, 1e-6, 1e-4)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_methods_on_one_data_set_share_its_images_and_captions(name):
    base = next(data for data in sorted(RECIPES, key=len) if name.startswith(data))
    recipe, plain = build_recipe(name), build_recipe(base)
    for part in ("data", "synthetic", "caption", "audit", "evaluate"):
        assert getattr(recipe, part) == getattr(plain, part)


def test_the_tiny_methods_differ_in_nothing_but_the_method():
    ours, reid, baseline = (build_recipe(f"demo{method}").train for method in ("", "_clip_reid", "_baseline"))
    assert ours.schedule == reid.schedule == baseline.schedule
    assert ours.augment == reid.augment == baseline.augment
    assert (reid.method, reid.loss.id_weight) == ("clip_reid", 0.25)
    assert (baseline.method, baseline.loss.id_weight) == ("clip_baseline", 1.0)


def test_overrides_reach_nested_settings():
    recipe = build_recipe("demo", ["train.schedule.epochs=3", "data.root=/images", "synthetic.seed=5"])
    assert recipe.train.schedule.epochs == 3
    assert recipe.data.root == "/images"
    assert recipe.synthetic.seed == 5


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        build_recipe("demo", ["train.schedule.epochs=-1", "train.schedule.epoch=3", "caption.batch_size=zero"])
    message = str(caught.value)
    assert "train.schedule.epochs" in message
    assert "train.schedule.epoch: no such setting; known here:" in message
    assert "caption.batch_size" in message


def test_malformed_overrides_are_named():
    with pytest.raises(ConfigError, match="is no setting; write key=value"):
        build_recipe("demo", ["train.schedule.epochs"])
    with pytest.raises(ConfigError, match=r"nothing: no such group"):
        build_recipe("demo", ["nothing.here=1"])


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match="market1501"):
        build_recipe("market")


def test_configs_are_frozen():
    recipe = build_recipe("demo")
    with pytest.raises(Exception, match="frozen"):
        recipe.train.schedule.epochs = 5


def test_runtime_settings_and_names_are_no_part_of_the_identity():
    recipe = build_recipe("demo")
    moved = build_recipe("demo", ["data.root=/elsewhere", "caption.batch_size=7", "data.workers=3"])
    assert json.dumps(recipe.data.identity()) == json.dumps(moved.data.identity())
    assert recipe.caption.identity() == moved.caption.identity()
