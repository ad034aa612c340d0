"""Checks of model weights: the captioner's and the backbone's, without loading a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from captioning.captioner import local_folder
from captioning.chat_form import read_chat_form
from captioning.config import TINY, CaptionConfig
from captioning.hub import check_available
from captioning.model_folder import check_folder, check_settings
from flows.preflight.plan import Plan, message_of
from flows.worlds import is_drawn
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


def photograph_notices(plan: Plan) -> Iterator[str]:
    """Yield a notice if the embedded captioner is about to caption images that were not drawn here."""
    config, root = plan.caption, plan.data.root
    is_embedded = config.engine == "transformers" and config.model == TINY
    if "caption" in plan.stages and is_embedded and root and not is_drawn(plan.run.store, Path(root)):
        yield (
            "caption.model=tiny has only learned drawn people, for trying the pipeline: on 384 photographs it had the"
            " gender right in 63 %, the upper color in 53 %, the lower color in 52 % and the bag in 23 %. To caption"
            " photographs set caption.model=llava-hf/llava-1.5-7b-hf, which needs a GPU, or ask a server"
            " (caption.engine=openai)"
        )


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
