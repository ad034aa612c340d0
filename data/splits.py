"""Names of the three splits of a re-identification dataset."""

from __future__ import annotations

from typing import Final, Literal

SplitName = Literal["train", "query", "gallery"]

TRAIN: Final = "train"
QUERY: Final = "query"
GALLERY: Final = "gallery"
SPLITS: Final[tuple[SplitName, ...]] = (TRAIN, QUERY, GALLERY)
