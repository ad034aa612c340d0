"""Cosine similarities of many rows with many rows, computed in blocks of rows, never as a whole matrix.

The features may be arrays, memory maps or tensors of any scale; they are read in blocks and L2-normalized to
float32 (`reid.precision.unit_rows`). A row of zeros has similarity 0 with all rows.

Every block is padded to a multiple of 64 rows before multiplication. Without edge tiles, the product of two given rows
has the same bits at any position and in any block size (checked for D from 8 to 1280 and 64 to 82,176 rows with MKL,
and by a test). So equal gallery images tie exactly, and no result depends on the block size.

Shapes: Q query rows, G gallery rows, W the same in whole tiles, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import DataError
from reid.precision import unit_rows

Features = NDArray[np.floating] | Tensor
Scores = NDArray[np.float32]

TILE: Final = 64
BLOCK_BYTES: Final = 256 << 20
"""Default size of one block of similarities: 800 rows at 82,161 gallery images."""
RESIDENT_BYTES: Final = 512 << 20
"""Default size up to which a gallery is read once and kept."""
CHUNK_ROWS: Final = 8192
"""Default number of rows that are read and normalized at a time."""
_TILE_HEIGHT: Final = 1024
"""Queries of a tile, at most: its product is efficient, and its scores stay in the processor's last cache."""


class FeatureRows:
    """Feature rows [N, D], read and normalized on demand.

    Args:
        features: array, memory map or tensor (any device, any float type).
        name: their name in errors.
        keep: positions of the rows to use, in order; None means all.
        unit: whether the rows already have length one.
        chunk_rows: rows read and normalized at a time; changes no result.

    Raises:
        DataError: not two-dimensional, no features, complex ones, or (when read) a NaN or infinity.
    """

    def __init__(
        self,
        features: Features,
        name: str,
        keep: NDArray[np.int64] | None = None,
        *,
        unit: bool = False,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        if features.ndim != 2 or features.shape[1] == 0:
            raise DataError(f"{name} features have shape {tuple(features.shape)}; they must be [images, dimensions]")
        if str(features.dtype).removeprefix("torch.").startswith("complex"):
            raise DataError(f"{name} features are {features.dtype}; they must be real numbers")
        self.name = name
        self._features = features
        self._keep = keep
        self._unit = unit
        self.dim = int(features.shape[1])
        self.chunk_rows = chunk_rows

    def __len__(self) -> int:
        """Return N, the number of rows in use."""
        return int(self._features.shape[0]) if self._keep is None else len(self._keep)

    def block(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` as unit vectors, float32 on the CPU, padded with zeros to a multiple of 64."""
        stop = min(stop, len(self))
        padded = torch.zeros(padded_to(stop - start), self.dim)
        for first in range(start, stop, self.chunk_rows):
            last = min(first + self.chunk_rows, stop)
            rows = self._read(slice(first, last) if self._keep is None else self._keep[first:last])
            self._check(rows, first)
            padded[first - start : last - start] = rows if self._unit else unit_rows(rows)
        return padded

    def gather(self, places: NDArray[np.integer]) -> Tensor:
        """Return the rows at `places` as `block` does, but without a check: NaN and infinity stay what they are."""
        padded = torch.zeros(padded_to(len(places)), self.dim)
        rows = self._read(np.asarray(places, np.int64) if self._keep is None else self._keep[places])
        padded[: len(places)] = rows if self._unit else unit_rows(rows)
        return padded

    def _read(self, where: slice | NDArray[np.int64]) -> Tensor:
        """Return rows of the given features as they are, float32 or float64."""
        if isinstance(self._features, Tensor):
            rows = self._features.detach()[where if isinstance(where, slice) else torch.from_numpy(where)]
            rows = (rows if rows.dtype == torch.float64 else rows.float()).cpu()
        else:
            values = np.asarray(self._features[where])
            short = values.dtype in (np.float16, np.float32)
            rows = torch.from_numpy(values.astype(np.float32 if short else np.float64))
        return rows

    def _check(self, rows: Tensor, start: int) -> None:
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero()
        if not len(bad):
            return
        raise DataError(
            f"{self.name} features contain NaN or infinity, first in row {self.number(start + int(bad[0]))}; the model "
            "that made them diverged"
        )

    def number(self, place: int) -> int:
        """Return the position in the given features of the row at `place`."""
        return place if self._keep is None else int(self._keep[place])


def check_dimensions(queries: FeatureRows, gallery: FeatureRows) -> None:
    """Raise DataError if the rows have different numbers of dimensions."""
    if queries.dim != gallery.dim:
        raise DataError(f"{queries.name} features have {queries.dim} dimensions and {gallery.name} {gallery.dim}")


def padded_to(rows: int) -> int:
    """Return `rows` rounded up to whole tiles (at least one)."""
    return max(1, -(-rows // TILE)) * TILE


def similarity_blocks(
    queries: FeatureRows, gallery: FeatureRows, block_bytes: int = BLOCK_BYTES, *, resident_bytes: int = RESIDENT_BYTES
) -> Iterator[tuple[int, Scores]]:
    """Yield (first query row, similarities float32 [b, W]) for consecutive blocks of query rows.

    W is G rounded up to whole tiles; the columns from G on are -inf, so that they come last in any ranking. The array
    is contiguous (the compiled loops need that). The consumer may change it; the next block overwrites it. A gallery
    of up to `resident_bytes` is read once; a larger one is read again, `gallery.chunk_rows` at a time, for every block.
    """
    check_dimensions(queries, gallery)
    width = padded_to(len(gallery))
    height = min(padded_to(len(queries)), max(TILE, block_bytes // (4 * width) // TILE * TILE))
    buffer = torch.empty(height, width)
    resident = gallery.block(0, len(gallery)) if 4 * width * gallery.dim <= resident_bytes else None
    for start in range(0, len(queries), height):
        query_BD = queries.block(start, start + height)
        out = buffer[: len(query_BD)]
        if resident is not None:
            torch.mm(query_BD, resident.T, out=out)
        else:
            _multiply_streamed(query_BD, gallery, out)
        out[:, len(gallery) :] = -torch.inf
        yield start, out.numpy()[: min(height, len(queries) - start)]


def _multiply_streamed(query_BD: Tensor, gallery: FeatureRows, out: Tensor) -> None:
    for start in range(0, len(gallery), gallery.chunk_rows):
        chunk = gallery.block(start, start + gallery.chunk_rows)
        torch.mm(query_BD, chunk.T, out=out[:, start : start + len(chunk)])


class Tile(NamedTuple):
    """Similarities of some queries of a block with some gallery rows.

    query: first query row, within the block. gallery: first gallery row. scores: float32 [h, c], contiguous.
    """

    query: int
    gallery: int
    scores: Scores


class TileShape(NamedTuple):
    """Rows of tiles, each a multiple of 64: queries and gallery rows of a tile."""

    height: int
    width: int

    @classmethod
    def within(cls, tile_bytes: int, gallery: FeatureRows) -> TileShape:
        """Return the largest useful tile of about `tile_bytes`, at least 64 x 64."""
        width = min(gallery.chunk_rows, tile_bytes // (4 * TILE))
        width = min(max(TILE, width // TILE * TILE), padded_to(len(gallery)))
        height = min(_TILE_HEIGHT, tile_bytes // (4 * width))
        return cls(max(TILE, height // TILE * TILE), width)


def similarity_tiles(query_BD: Tensor, count: int, gallery: FeatureRows, shape: TileShape) -> Iterator[Tile]:
    """Yield the similarities of a block of queries with the whole gallery, tile by tile; reads the gallery once.

    query_BD: as `FeatureRows.block` returns it, of which the first `count` rows are queries. All queries of the block
    come before the next gallery rows, which keep their order. Columns from G on are -inf. The consumer may change the
    scores; the next tile overwrites them.
    """
    buffer = torch.empty(shape.height * shape.width)
    for first in range(0, len(gallery), shape.width):
        chunk = gallery.block(first, first + shape.width)
        for start in range(0, count, shape.height):
            rows = query_BD[start : start + shape.height]
            out = buffer[: len(rows) * len(chunk)].view(len(rows), len(chunk))
            torch.mm(rows, chunk.T, out=out)
            out[:, len(gallery) - first :] = -torch.inf
            yield Tile(start, first, out.numpy()[: count - start])
