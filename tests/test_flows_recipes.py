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


def test_the_promised_recipes_exist():
    assert {"demo", "pku_reid", "market1501"} <= set(RECIPES)


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
