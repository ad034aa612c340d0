"""Adam with learning rates for CLIP, new modules and their biases, and the published schedule."""

from __future__ import annotations

from bisect import bisect_right
from typing import TypedDict

import torch
from torch import nn

from reid.config.train import ScheduleConfig
from reid.tasks.base import Task

_CLIP_PREFIX = "backbone."


class ParameterGroup(TypedDict):
    """A parameter group of Adam, as `torch.optim` reads it; `names` and `params` are parallel."""

    name: str
    names: list[str]
    params: list[nn.Parameter]
    base_rate: float
    weight_decay: float


def parameter_groups(task: Task, schedule: ScheduleConfig) -> list[ParameterGroup]:
    """Return Adam's groups `clip`, `clip_bias`, `new`, `new_bias` (those that exist) without frozen parameters."""
    groups: dict[str, ParameterGroup] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "clip" if name.startswith(_CLIP_PREFIX) else "new"
        rate = schedule.lr_clip if part == "clip" else schedule.lr_new
        if "bias" in name:
            part, rate = f"{part}_bias", rate * schedule.bias_factor
        new = ParameterGroup(name=part, names=[], params=[], base_rate=rate, weight_decay=schedule.weight_decay)
        group = groups.setdefault(part, new)
        group["names"].append(name)
        group["params"].append(parameter)
    return [groups[part] for part in sorted(groups)]


def build_optimizer(task: Task, schedule: ScheduleConfig) -> torch.optim.Adam:
    """Return Adam over `parameter_groups`, at the rates of the first epoch."""
    optimizer = torch.optim.Adam(
        [{**group} for group in parameter_groups(task, schedule)], lr=schedule.lr_new, fused=True
    )
    set_rates(optimizer, schedule, 0)
    return optimizer


def rate_factor(epoch: int, schedule: ScheduleConfig) -> float:
    """Return the factor on every learning rate in `epoch` (the first is 0).

    As in CLIP-ReID (solver/lr_scheduler.py), epochs count from 1: the warm-up skips its first value, and a milestone of
    20 applies from the 20th epoch on.
    """
    number = epoch + 1
    warmup = 1.0
    if number < schedule.warmup_epochs:
        done = number / schedule.warmup_epochs
        warmup = schedule.warmup_factor * (1 - done) + done
    return float(warmup * schedule.gamma ** bisect_right(schedule.milestones, number))


def set_rates(optimizer: torch.optim.Optimizer, schedule: ScheduleConfig, epoch: int) -> dict[str, float]:
    """Set every group's learning rate for `epoch` and return them by group name."""
    factor = rate_factor(epoch, schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
