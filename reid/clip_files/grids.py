"""The grid of rows and columns on which position embeddings of CLIP were learned. Imports no torch.

A file stores a list of positions without their grid: 64 positions are 8 x 8 or 16 x 4. The wrong grid would scramble
them without an error, so for a count that fits several grids the user must set the grid.
"""

from __future__ import annotations

from math import prod
from typing import Final

from data.errors import WeightsError

Grid = tuple[int, int]
"""Rows and columns of patches."""

SETTING: Final = "train.backbone.source_grid"
CLIP_GRIDS: Final[tuple[Grid, ...]] = ((14, 14), (7, 7))
"""Published grids of CLIP at 224 x 224 pixels: ViT-B/16, and ViT-B/32 or ResNet-50."""
# Crops of people are upright rectangles; no grid steeper than 4 to 1 is considered.
_STEEPEST: Final = 4


def patch_grid(size: Grid, patch: int, stride: int = 0) -> Grid:
    """Return the grid of patches of an image of `size` (height, width), in pixels; stride 0 is the patch size."""
    step = stride or patch
    return (size[0] - patch) // step + 1, (size[1] - patch) // step + 1


def plausible_grids(count: int) -> list[Grid]:
    """Return every grid of `count` positions whose sides differ by a factor of four at most."""
    found = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return [grid for grid in found if max(grid) <= _STEEPEST * min(grid)]


def grid_of(count: int, wanted: Grid, *, given: Grid | None = None, published: tuple[Grid, ...] = CLIP_GRIDS) -> Grid:
    """Return the grid that `count` stored positions were learned on.

    Args:
        count: positions in the file, without the class position.
        wanted: grid of the model to load; a count that fits it needs no other hint.
        given: the grid of the file's config or of the setting.
        published: known grids of this architecture.

    Raises:
        WeightsError: `given` has another count, or the count fits several grids.
    """
    if given is not None:
        if prod(given) != count:
            raise WeightsError(
                f"{count} position embeddings do not fill a grid of {given[0]} x {given[1]}{_ask(count)}"
            )
        return given
    known = [grid for grid in published if prod(grid) == count]
    fitting = [wanted] if prod(wanted) == count else []
    candidates = sorted({*fitting, *known}) or plausible_grids(count)
    if len(candidates) != 1:
        raise WeightsError(f"{_ambiguous(count, candidates)}; the model has {wanted[0]} x {wanted[1]}{_ask(count)}")
    return candidates[0]


def _ambiguous(count: int, candidates: list[Grid]) -> str:
    if not candidates:
        return f"{count} position embeddings do not fill any grid"
    return f"{count} position embeddings fit several grids"


def _ask(count: int) -> str:
    grids = plausible_grids(count)
    if not grids:
        return ""
    square = min(grids, key=lambda grid: abs(grid[0] - grid[1]))
    shown = " or ".join(f"[{rows},{columns}]" for rows, columns in {square: None, **dict.fromkeys(grids)})
    return f". Set {SETTING} to the rows and columns they were learned on, one of {shown}"
