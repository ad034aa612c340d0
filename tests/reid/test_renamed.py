"""Renamed settings: the old names load for one release, and fingerprints do not change."""

import pytest

from data.config import build_config
from data.errors import ConfigError
from data.settings import settings_of
from flows.recipes import Recipe
from reid.config.renamed import RENAMED
from reid.config.train import ScgiConfig, ScheduleConfig, TrainConfig

OLD = {
    "schedule": {"rate_clip": 1e-3, "rate_new": 2e-3},
    "prompts": {"rate": 1e-3, "rate_min": 1e-5, "warmup_rate": 1e-4},
    "scgi": {"plain_share": 0.5, "queries": 4},
}
NEW = {
    "schedule": {"lr_clip": 1e-3, "lr_new": 2e-3},
    "prompts": {"lr": 1e-3, "lr_min": 1e-5, "lr_warmup": 1e-4},
    "scgi": {"fixed_prompt_ratio": 0.5, "inversion_tokens": 4},
}


def test_a_config_with_old_names_is_that_with_new_ones():
    assert TrainConfig.model_validate(OLD) == TrainConfig.model_validate(NEW)
    assert ScheduleConfig(**OLD["schedule"]) == ScheduleConfig(**NEW["schedule"])


@pytest.mark.parametrize("group", OLD)
def test_a_config_is_written_with_new_names(group):
    written = TrainConfig.model_validate(OLD).model_dump(mode="json")[group]
    assert NEW[group].items() <= written.items()
    assert not OLD[group].keys() & written.keys()


@pytest.mark.parametrize("group", OLD)
def test_the_identity_has_the_old_names(group):
    identity = getattr(TrainConfig.model_validate(NEW), group).identity()
    assert OLD[group].items() <= identity.items()
    assert not NEW[group].keys() & identity.keys()


def test_every_renamed_setting_is_tested():
    assert {f"train.{group}.{name}" for group, settings in OLD.items() for name in settings} == RENAMED.keys()


def test_every_new_key_is_a_setting_and_no_old_one_is():
    settings = settings_of(Recipe)
    assert set(RENAMED.values()) <= settings.keys()
    assert not RENAMED.keys() & settings.keys()


def test_both_names_at_once_are_refused():
    with pytest.raises(ConfigError, match="queries: is the old name of inversion_tokens; give only inversion_tokens"):
        build_config(ScgiConfig, {"queries": 4, "inversion_tokens": 4}, "scgi")
    with pytest.raises(ConfigError, match=r"schedule\.rate_new: is the old name of schedule\.lr_new"):
        build_config(TrainConfig, {"schedule": {"rate_new": 1e-3, "lr_new": 1e-3}}, "training")


def test_a_value_that_does_not_work_is_refused_under_the_new_name():
    with pytest.raises(ConfigError, match=r"scgi\.inversion_tokens: .*greater than or equal to 1"):
        build_config(TrainConfig, {"scgi": {"queries": 0}}, "training")
