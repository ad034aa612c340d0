"""Pairs of images of an indexed dataset, read from its pixel cache and explained in batches.

Shapes: B pairs of a batch, F retrieval features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.columns.texts import TextPlaces
from reid.inputs.augment import normalize
from reid.inputs.image_rows import ImageRows
from reid.inputs.pixel_cache import Pixels
from reid.relevance.faithfulness import SHARE, Faithfulness, measure_drops, summarize
from reid.relevance.grid import Pair, PatchGrid
from reid.relevance.maps import Explained, similarity_maps
from reid.tasks.base import Task

_BATCH: Final = 32


class _Images(NamedTuple):
    """Normalized images of a batch and the numbers of their cameras."""

    pixels_BCHW: Tensor
    cameras_B: Tensor | None


class MappedPair(NamedTuple):
    """The columns of relevance.parquet besides the paths."""

    similarity: float
    query_map: list[float]
    gallery_map: list[float]


class DatasetImages:
    """The images of a dataset with the model that explains them; maps are made with the model's default method."""

    def __init__(self, task: Task, mode: str, rows: ImageRows, pixels: Pixels, device: str) -> None:
        self.task = task
        self.mode = mode
        self.rows = rows
        self.pixels = pixels
        self.device = device
        self._places = TextPlaces(rows.path)

    def explain(self, pairs: Sequence[Pair]) -> Iterator[MappedPair]:
        """Yield the maps of each pair of a query and a gallery image, in order."""
        for part in _chunks(pairs):
            query, gallery = self._sides(part)
            query_BF, gallery_BF = self._encode(query), self._encode(gallery)
            first, second = self._maps(query, gallery_BF), self._maps(gallery, query_BF)
            columns = (first.similarity_B, first.maps_BRC.flatten(1), second.maps_BRC.flatten(1))
            yield from (MappedPair(*row) for row in zip(*(column.tolist() for column in columns), strict=True))

    def faithfulness(self, pairs: Sequence[Pair], grid: PatchGrid) -> Faithfulness:
        """Return how faithful the maps of the queries are: the effect of deleting patches of each of them."""
        targets, maps = [], []
        for part in _chunks(pairs):
            query, gallery = self._sides(part)
            targets.append(self._encode(gallery))
            maps.append(self._maps(query, targets[-1]).maps_BRC)
        queries = self._images([query for query, _ in pairs])
        drops = measure_drops(
            self.task.encoders()[self.mode],
            queries.pixels_BCHW,
            torch.cat(targets),
            torch.cat(maps),
            grid,
            cameras_Q=queries.cameras_B,
        )
        return summarize(drops, SHARE)

    def _sides(self, pairs: Sequence[Pair]) -> tuple[_Images, _Images]:
        """Return the queries and the gallery images of the pairs."""
        query, gallery = zip(*pairs, strict=True)
        return self._images(query), self._images(gallery)

    def _images(self, paths: Sequence[str]) -> _Images:
        places = np.array([self._places.of(path) for path in paths], dtype=np.int64)
        pixels_BHWC = torch.from_numpy(np.stack([self.pixels[place] for place in self.rows.position[places]]))
        shape, cameras_B = self.task.preprocess, self.task.camera_numbers(self.rows.camid[places])
        images_BCHW = normalize(pixels_BHWC.to(self.device).permute(0, 3, 1, 2), shape.mean, shape.std)
        return _Images(images_BCHW, None if cameras_B is None else cameras_B.to(self.device))

    def _encode(self, images: _Images) -> Tensor:
        with torch.no_grad():
            return self.task.encoders()[self.mode](images.pixels_BCHW, images.cameras_B)

    def _maps(self, images: _Images, targets_BF: Tensor) -> Explained:
        return similarity_maps(self.task, images.pixels_BCHW, targets_BF, mode=self.mode, cameras_B=images.cameras_B)


def _chunks(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    return (pairs[start : start + _BATCH] for start in range(0, len(pairs), _BATCH))
