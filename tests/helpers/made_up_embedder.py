"""An embedder without a model, whose embeddings are drawn from the key of each image."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np

from data.artifacts.store import ArtifactRef
from reid.embedding.batches import EmbeddedBatch
from reid.embedding.embedder import EmbedConfig, Embedder
from reid.embedding.images import DistinctImages, ImageFile
from reid.embedding.journal import Float32s
from reid.tasks.base import Task

WIDTH = 4


class MadeUpEmbedder(Embedder):
    """What `embed_files` asks of an embedder.

    by_camera: the model has camera embeddings. refused: digests of images that cannot be opened. asked: the files of
    each image that was embedded or refused.
    """

    fingerprint = "f" * 32
    modes = ("image",)
    preprocessing: ClassVar[dict[str, Any]] = {}

    def __init__(self, *, by_camera: bool = False, refused: frozenset[str] = frozenset(), batch: int = 64) -> None:
        """Stand for a model that does not exist."""
        self.model = ArtifactRef(stage="train", fingerprint=self.fingerprint, content="c", path="/nowhere")
        self.config = EmbedConfig(device="cpu", batch_size=batch)
        self.task = cast(Task, SimpleNamespace(sie=by_camera, camera_numbers=lambda camids: None))
        self.refused = refused
        self.asked: list[list[ImageFile]] = []

    def resolve_mode(self, name: str | None) -> str:
        """Return the only mode."""
        return name or self.modes[0]

    def width(self, mode: str | None = None) -> int:
        """Return the number of values of an embedding."""
        return WIDTH

    def vector(self, image: ImageFile) -> Float32s:
        """Return the embedding of an image."""
        seed = int(image.sha256, 16) + (image.camid or 0 if self.needs_cameras else 0)
        drawn = np.random.default_rng(seed).standard_normal(WIDTH)
        return (drawn / np.linalg.norm(drawn)).astype(np.float32)

    def embed_distinct(
        self, embedder: Embedder, images: DistinctImages, *, root: Path, mode: str
    ) -> Generator[EmbeddedBatch, None, None]:
        """Yield the embeddings of images, as `EmbedFn` says."""
        remaining = iter(images)
        while batch := list(islice(remaining, self.config.batch_size)):
            self.asked += batch
            reasons = ["missing" if same[0].sha256 in self.refused else "" for same in batch]
            vectors = [self.vector(same[0]) for same, reason in zip(batch, reasons, strict=True) if not reason]
            yield EmbeddedBatch(np.array(vectors, np.float32).reshape(-1, WIDTH), np.array(reasons, np.str_))
