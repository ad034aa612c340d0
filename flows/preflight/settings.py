"""Checks of settings against what is installed, set or writable on this machine, and against each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from flows.preflight.disk import writable
from flows.preflight.plan import Plan
from flows.workers.ray_run import ray_problems


def runner_problems(plan: Plan) -> Iterator[str]:
    """Yield why Ray cannot be used: it is not installed, or its cluster does not answer."""
    if plan.scale.runner == "ray" and {"caption", "evaluate"} & set(plan.stages):
        yield from ray_problems()


def key_problems(plan: Plan) -> Iterator[str]:
    """Yield the variable of a captioning server's API key if it is not set."""
    variable = plan.caption.server.key_variable
    served = "caption" in plan.stages and plan.caption.engine == "openai"
    if served and variable and not os.environ.get(variable):
        yield (
            f"caption.server.key_variable={variable}: that environment variable is not set; put the API key of the "
            "server there, or set caption.server.key_variable=null"
        )


def prompt_length_problems(plan: Plan) -> Iterator[str]:
    """Yield learned prompts that are longer than the text tower takes."""
    if "train" in plan.stages and plan.train.method == "clip_reid":
        from reid.models.prompts import prompt_problems

        yield from prompt_problems(plan.train)


def log_problems(plan: Plan) -> Iterator[str]:
    """Yield a missing MLflow, and a TensorBoard folder that cannot be written."""
    if "train" not in plan.stages:
        return
    if plan.train.tracking == "mlflow" and find_spec("mlflow") is None:
        yield "train.tracking=mlflow is not installed: pip install 'clip-scgi[mlflow]', or set train.tracking=none"
    if not plan.train.tensorboard:
        return
    if find_spec("tensorboard") is None:
        yield 'train.tensorboard needs tensorboard, which is not installed: set train.tensorboard=""'
    elif not writable(Path(plan.train.tensorboard)):
        yield f"train.tensorboard={plan.train.tensorboard} cannot be written: set it to a folder of your own"
