"""Adam's groups and learning rates on a module small enough to write the expected values down."""

import pytest
import torch

from reid.config.train import ScheduleConfig
from reid.training.optim import build_optimizer, parameter_groups, rate_factor, set_rates

SCHEDULE = ScheduleConfig(
    epochs=9,
    lr_clip=1e-3,
    lr_new=1e-2,
    bias_factor=3.0,
    weight_decay=0.25,
    warmup_epochs=4,
    warmup_factor=0.2,
    milestones=(6, 8),
    gamma=0.5,
)


def module() -> torch.nn.Module:
    """Two CLIP layers, one of them frozen, and two new ones; `other.backbone` is new despite its name."""
    task = torch.nn.Module()
    task.backbone = torch.nn.ModuleDict({"frozen": torch.nn.Linear(2, 2), "free": torch.nn.Linear(3, 2)})
    task.backbone["frozen"].requires_grad_(False)
    task.head = torch.nn.Linear(2, 5)
    task.other = torch.nn.ModuleDict({"backbone": torch.nn.Linear(1, 1, bias=False)})
    return task


def test_groups_rates_and_names():
    task = module()
    groups = parameter_groups(task, SCHEDULE)
    told = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    assert told == [
        {"name": "clip", "names": ["backbone.free.weight"], "base_rate": 1e-3, "weight_decay": 0.25},
        {"name": "clip_bias", "names": ["backbone.free.bias"], "base_rate": 3e-3, "weight_decay": 0.25},
        {"name": "new", "names": ["head.weight", "other.backbone.weight"], "base_rate": 1e-2, "weight_decay": 0.25},
        {"name": "new_bias", "names": ["head.bias"], "base_rate": 3e-2, "weight_decay": 0.25},
    ]
    parameters = dict(task.named_parameters())
    for group in groups:
        assert [id(p) for p in group["params"]] == [id(parameters[name]) for name in group["names"]]


def test_the_optimizer_begins_at_the_rates_of_the_first_epoch():
    optimizer = build_optimizer(module(), SCHEDULE)
    assert type(optimizer) is torch.optim.Adam
    first = 0.2 * 0.75 + 0.25
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    expected = {"clip": 1e-3, "clip_bias": 3e-3, "new": 1e-2, "new_bias": 3e-2}
    assert rates == pytest.approx({name: rate * first for name, rate in expected.items()})
    assert all(group["weight_decay"] == 0.25 and group["fused"] for group in optimizer.param_groups)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["lr"] == 1e-2


def test_the_factor_of_each_epoch():
    # Epoch 1 of 4 is a quarter of the way from 0.2 to 1; epoch 4 is the first without warm-up; 6 and 8 halve the rate.
    expected = [0.4, 0.6, 0.8, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert [rate_factor(epoch, SCHEDULE) for epoch in range(9)] == pytest.approx(expected)
    assert isinstance(rate_factor(0, SCHEDULE), float)


def test_a_milestone_within_the_warm_up_counts_too():
    schedule = SCHEDULE.model_copy(update={"milestones": (2,)})
    assert [rate_factor(epoch, schedule) for epoch in range(3)] == pytest.approx([0.4, 0.3, 0.4])


def test_setting_rates_returns_them_and_moves_every_group():
    optimizer = build_optimizer(module(), SCHEDULE)
    returned = set_rates(optimizer, SCHEDULE, 7)
    expected = {"clip": 2.5e-4, "clip_bias": 7.5e-4, "new": 2.5e-3, "new_bias": 7.5e-3}
    assert returned == pytest.approx(expected)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == returned
