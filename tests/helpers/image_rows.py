"""Rows of images for tests that need labels only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reid.inputs.image_rows import ImageRow, ImageRows


def image_rows(splits: Sequence[str], pids: Iterable[int], camids: Iterable[int]) -> ImageRows:
    """Return images with these labels, and with paths and digests that are numbered in their order."""
    labels = enumerate(zip(splits, pids, camids, strict=True))
    return ImageRows.of(
        ImageRow(f"{at:04d}.jpg", f"{at:064x}", split, int(pid), int(camid)) for at, (split, pid, camid) in labels
    )
