"""Trained models, loaded when they are needed, one at a time; used by the thread of `flows.ui.content.work` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from PIL import Image

from data.artifacts.inventory import Entry
from data.artifacts.store import ArtifactStore
from data.errors import DataError, RejectedRow
from data.images.decode import open_indexed, unusable_image
from flows.ui.content.items import ImageItem
from flows.ui.content.pictures import encoded
from flows.ui.content.tables import ImageTable
from flows.ui.content.work import Tell

if TYPE_CHECKING:
    from reid.embedding.embedder import Embedder
    from reid.inputs.image_rows import ImageRows

_PICTURE_HEIGHT: Final = 288  # pixels


class Maps(NamedTuple):
    """What makes two images similar. query, hit: pictures, JPEG. similarity: cosine of their features."""

    query: bytes
    hit: bytes
    similarity: float


class Models:
    """The model that was used last stays loaded."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._loaded: tuple[str, Embedder] | None = None

    def get(self, model: Entry, tell: Tell) -> Embedder:
        """Return a model; load it first if another one is loaded."""
        if self._loaded is None or self._loaded[0] != model.fingerprint:
            tell(f"Loading the model train/{model.fingerprint[:8]}.")
            from reid.embedding.embedder import Embedder

            self._loaded = None  # never two models in memory
            self._loaded = (model.fingerprint, Embedder.load(model.folder, home=self._store.root))
        return self._loaded[1]

    def maps(self, model: Entry, mode: str, table: ImageTable, pair: Sequence[ImageItem], tell: Tell) -> Maps:
        """Return the maps of a query and a hit in an inference mode of the model."""
        images = [opened(table, item) for item in pair]
        embedder = self.get(model, tell)
        tell("Computing what makes the two images similar.")
        import torch

        from data.process.environment import exact_float32
        from reid.inputs.pixel_cache import resized
        from reid.relevance.dataset import DatasetImages
        from reid.relevance.grid import grid_of
        from reid.relevance.overlay import overlay

        shape = embedder.task.preprocess
        pixels = np.stack([resized(image, shape.height, shape.width) for image in images])
        explainer = DatasetImages(embedder.task, mode, _rows(pair), pixels, embedder.device)
        with exact_float32(torch):
            (found,) = explainer.explain([(pair[0].path, pair[1].path)])
        grid = grid_of(embedder.task.backbone, shape.height, shape.width)
        query, hit = (
            encoded(overlay(image, np.array(values).reshape(grid.rows, grid.columns), grid), _PICTURE_HEIGHT)
            for image, values in zip(images, (found.query_map, found.gallery_map), strict=True)
        )
        return Maps(query, hit, found.similarity)


def opened(table: ImageTable, item: ImageItem) -> Image.Image:
    """Return an image of a dataset. Raises DataError if its file is missing, unusable or changed."""
    if table.root is None:
        raise DataError("The folder of these images is not found; start clip-scgi ui --images FOLDER with it.")
    try:
        return open_indexed(table.root, item.path, item.sha256)
    except RejectedRow as rejected:
        raise unusable_image(f"The image {item.path}", rejected) from rejected


def _rows(pair: Sequence[ImageItem]) -> ImageRows:
    from data.people import UNKNOWN_CAMERA
    from reid.inputs.image_rows import ImageRow, ImageRows

    cameras = [UNKNOWN_CAMERA if item.camera is None else item.camera for item in pair]
    return ImageRows.of(
        ImageRow(item.path, item.sha256, item.split, item.pid, camera)
        for item, camera in zip(pair, cameras, strict=True)
    )
