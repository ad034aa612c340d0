"""How many processes a run may use: part of a recipe, and of no cache key, for they change no result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.config import Config


class ScaleConfig(Config):
    """Over how many processes captioning and training are spread."""

    caption_workers: int = Field(default=1, ge=1, le=1024)
    """Workers that caption one data set at once; each loads the captioner for itself. 1: one task, no fan-out."""
    runner: Literal["threads", "processes", "ray"] = "processes"
    """Prefect's task runner for these workers. Threads share one process; ray needs the extra of that name."""
    train_processes: int = Field(default=1, ge=1, le=1024)
    """Processes of `accelerate launch` that train together on this machine, one a GPU. 1: train in the task itself."""
