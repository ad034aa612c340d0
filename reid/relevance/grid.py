"""The grid of an image tower: which pixels belong to which position, for maps, pictures and deletion.

Shapes: H, W pixels of the model input; R rows and C columns of positions, with P = R * C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from reid.models.backbone import Backbone

Floats = NDArray[np.floating[Any]]
Pair = tuple[str, str]
"""Paths of a query and of a gallery image in images.parquet."""


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Positions of an image tower, row by row from the top left.

    rows, columns: number of positions. patch: side of a position in pixels. stride: pixels from one position to the
    next, less than `patch` if patches overlap. height, width: of the model input in pixels.
    """

    rows: int
    columns: int
    patch: int
    stride: int
    height: int
    width: int

    def __len__(self) -> int:
        """Return P, the number of positions."""
        return self.rows * self.columns

    def area(self, position: int) -> tuple[slice, slice]:
        """Return the pixel rows and columns of a position, numbered from 0 at the top left, row by row."""
        row, column = divmod(position, self.columns)
        top, left = row * self.stride, column * self.stride
        return slice(top, top + self.patch), slice(left, left + self.patch)

    def spread(self, map_RC: Floats, height: int, width: int) -> Floats:
        """Return the map at `height` x `width` pixels of the whole image, interpolated between the patches' centers.

        Pixels beyond the outermost centers have the value of the nearest one.
        """
        rows = np.interp(self._centers(self.height, height), self._positions(self.rows), np.arange(self.rows))
        columns = np.interp(self._centers(self.width, width), self._positions(self.columns), np.arange(self.columns))
        return _weights(rows, self.rows) @ map_RC @ _weights(columns, self.columns).T

    def _positions(self, count: int) -> Floats:
        """Return the centers of the positions along one side, in pixels of the model input."""
        return np.arange(count) * self.stride + self.patch / 2

    @staticmethod
    def _centers(size: int, pixels: int) -> Floats:
        """Return the centers of `pixels` pixels that share a side of `size` pixels of the model input."""
        return (np.arange(pixels) + 0.5) * size / pixels


def _weights(places: Floats, count: int) -> Floats:
    """Return the weights [places, count] of linear interpolation at fractional positions."""
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count)[None]))


def grid_of(backbone: Backbone, height: int, width: int) -> PatchGrid:
    """Return the grid of a backbone for images of `height` x `width` pixels.

    A position of the ResNet covers the pixels of its cell here, although its receptive field is larger.
    """
    visual = backbone.clip.visual
    rows, columns = visual.grid_size
    if backbone.is_resnet:
        patch = stride = height // rows
    else:
        patch, stride = visual.conv1.kernel_size[0], visual.conv1.stride[0]
    return PatchGrid(rows=rows, columns=columns, patch=patch, stride=stride, height=height, width=width)
