"""Checks of model weights: the captioner's and the backbone's, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator

from captioning.captioner import local_folder
from captioning.chat_form import read_chat_form
from captioning.config import CaptionConfig
from captioning.hub import check_available
from captioning.model_folder import check_folder, check_settings
from flows.preflight.plan import Plan, message_of
from reid.models.weights_source import read_source


def captioner_problems(plan: Plan) -> Iterator[str]:
    """Yield a captioning model that cannot be found or lacks files; does not load it."""
    if "caption" in plan.stages and plan.caption.engine == "transformers":
        yield from message_of(lambda: _check_captioner(plan.caption))


def _check_captioner(config: CaptionConfig) -> None:
    folder = local_folder(config.model)
    if folder is None:  # a hub id, which is fetched when captioning begins
        check_available(config.model, config.revision)
    else:
        check_folder(folder)
        check_settings(folder, config)
        form = read_chat_form(folder)
        if form is not None:
            form.prompt(config.prompt_template)  # raises for an unusable chat template


def backbone_problems(plan: Plan) -> Iterator[str]:
    """Yield a weights file of the backbone that does not exist or does not fit."""
    if {"train", "evaluate"} & plan.stages:
        yield from message_of(lambda: _check_backbone(plan))


def _check_backbone(plan: Plan) -> None:
    config = plan.train.backbone
    read_source(config)  # reads the header only
    if config.is_file and "train" in plan.stages:
        # A missing tensor or a NaN that training finds would cost the hours of captioning.
        from reid.models.backbone import check_backbone

        check_backbone(config)
