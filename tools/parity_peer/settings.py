"""Published settings and schedules of the public CLIP-ReID, read and run by its own code."""

from __future__ import annotations

import ast
import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from tools.parity_peer.world import Case, rounded

SETTINGS = {"vit_b16": "vit_clipreid.yml", "rn50": "cnn_clipreid.yml"}
BASELINES = {"vit_b16": "vit_base.yml", "rn50": "cnn_base.yml"}


def settings(folder: Path, case: Case, files: dict[str, str] = SETTINGS) -> Any:
    """Return the public defaults with the published person settings and those of `case` on top."""
    defaults = import_module("config")
    config = copy.deepcopy(defaults.cfg_base if files is BASELINES else defaults.cfg)
    _merge(config, yaml.safe_load((folder / "configs/person" / files[case.backbone]).read_text()))
    config.MODEL.STRIDE_SIZE = [case.stride, case.stride]
    config.MODEL.SIE_CAMERA, config.MODEL.SIE_COE = case.sie > 0, case.sie
    return config


def _merge(config: Any, changes: dict[str, Any]) -> None:
    """Set the values of `changes` in the namespaces of `config`."""
    for name, value in changes.items():
        if isinstance(value, dict):
            _merge(vars(config)[name], value)
        elif value is not None:
            # YAML reads 1e-4 as text; yacs evaluates it.
            setattr(config, name, ast.literal_eval(value) if isinstance(value, str) and value[:1].isdigit() else value)


def published(folder: Path, backbone: str) -> dict[str, Any]:
    """Return the published settings of a backbone, with the learning rate of every epoch."""
    config = settings(folder, Case(backbone=backbone))
    first, second = config.SOLVER.STAGE1, config.SOLVER.STAGE2
    return {
        "mean": config.INPUT.PIXEL_MEAN,
        "std": config.INPUT.PIXEL_STD,
        "images_of_an_identity": config.DATALOADER.NUM_INSTANCE,
        "margin": config.SOLVER.MARGIN,
        "stage1": _stage(first) | {"rates": _first_rates(first)},
        "stage2": second_stage_settings(second),
    }


def _stage(solver: Any) -> dict[str, Any]:
    """Return the settings that both stages have."""
    return {
        "epochs": solver.MAX_EPOCHS,
        "batch": solver.IMS_PER_BATCH,
        "rate": solver.BASE_LR,
        "weight_decay": [solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_BIAS],
    }


def second_stage_settings(solver: Any) -> dict[str, Any]:
    """Return the settings of the second stage, with the learning rate of every epoch."""
    return _stage(solver) | {"bias_factor": solver.BIAS_LR_FACTOR, "rates": _second_rates(solver)}


def _first_rates(solver: Any) -> list[float]:
    """Return the learning rate of every epoch of the first stage."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=solver.BASE_LR)
    schedule = import_module("solver.scheduler_factory").create_scheduler(
        optimizer, solver.MAX_EPOCHS, solver.LR_MIN, solver.WARMUP_LR_INIT, solver.WARMUP_EPOCHS
    )
    rates = []
    for epoch in range(1, solver.MAX_EPOCHS + 1):
        schedule.step(epoch)
        rates.append(rounded(optimizer.param_groups[0]["lr"]))
    return rates


def _second_rates(solver: Any) -> list[float]:
    """Return the learning rate of every epoch of the second stage."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=solver.BASE_LR)
    schedule = import_module("solver.lr_scheduler").WarmupMultiStepLR(
        optimizer, solver.STEPS, solver.GAMMA, solver.WARMUP_FACTOR, solver.WARMUP_ITERS, solver.WARMUP_METHOD
    )
    rates = []
    for _ in range(solver.MAX_EPOCHS):
        optimizer.step()
        schedule.step()
        rates.append(rounded(optimizer.param_groups[0]["lr"]))
    return rates
