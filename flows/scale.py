"""How many processes a run may use: part of a recipe, and of no cache key, for they change no result."""

from __future__ import annotations

from typing import Any, Final, Literal

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from data.config import Config
from data.errors import ConfigError

Runner = Literal["threads", "processes", "ray"]
_RAY: Final = "scale.runner is ray, which is not installed here: pip install 'clip-scgi[ray]'"


class ScaleConfig(Config):
    """Over how many processes captioning and training are spread."""

    caption_parts: int = Field(default=1, ge=1, le=1024)
    """Parts that an index is captioned in at once; each loads the captioner for itself. 1: one task, no fan-out."""
    runner: Runner = "processes"
    """Prefect's task runner for these parts. Threads share one process; ray needs the extra of that name."""
    train_processes: int = Field(default=1, ge=1, le=1024)
    """Processes of `accelerate launch` that train together on this machine, one a GPU. 1: train in the task itself."""


def task_runner(config: ScaleConfig) -> TaskRunner[Any]:
    """Return the task runner that captions `config.caption_parts` parts at once. ConfigError where Ray is absent."""
    if config.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=config.caption_parts)
    if config.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=config.caption_parts)
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise ConfigError(_RAY) from error
    return RayTaskRunner()
