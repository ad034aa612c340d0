"""A captioning process for tests that kill it. The fork server imports this module, and everything heavy, once."""

from __future__ import annotations

from pathlib import Path

import transformers.models.clip.image_processing_clip
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama
import transformers.models.llava.processing_llava  # noqa: F401 - all four for the fork server

import captioning.engines.llava  # noqa: F401 - for the fork server
from captioning.config import CaptionConfig
from data.artifacts.store import ArtifactRef, ArtifactStore
from tests.helpers.caption_worlds import worker_of


def caption_in_child(home: str, images: dict[str, str], root: str, settings: str) -> None:
    """Caption all images and write a shard per batch, so that a killed process leaves some."""
    worker = worker_of(
        ArtifactStore(Path(home)),
        images=ArtifactRef(**images),
        root=Path(root),
        config=CaptionConfig.model_validate_json(settings),
        flush_rows=4,
    )
    worker.work(patient=True)
