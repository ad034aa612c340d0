"""The test images of a data set, and which of them are queries and gallery: the published split, or drawn galleries.

Shapes: N test images, queries first; Q queries and G gallery images among them.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.artifacts import ArtifactRef
from data.errors import DataError
from data.files import read_json
from reid.config_evaluate import EvaluateConfig

JUNK: Final = -1
"""Identity of gallery images that count neither for nor against."""
VEHICLEID_DRAWS: Final = 10
"""Galleries of the VehicleID protocol (Liu et al., CVPR 2016)."""

Ints = NDArray[np.int64]
Exclude = Literal["same_camera", "none"]


class Images(NamedTuple):
    """Columns of images: row in images.parquet, path, identity and camera."""

    position: Ints
    path: NDArray[np.object_]
    pid: Ints
    camid: Ints

    def take(self, index: slice | Ints) -> Images:
        """Return some of the images."""
        return Images(self.position[index], self.path[index], self.pid[index], self.camid[index])


class Split(NamedTuple):
    """Places of the queries and of the gallery among the test images, and what a query's ranking leaves out."""

    query: slice | Ints
    gallery: slice | Ints
    exclude: Exclude


class EvaluationRows(NamedTuple):
    """The test images, queries first, and every split of them that is to be ranked."""

    images: Images
    splits: list[Split]
    drawn: bool
    """Whether the galleries were drawn."""
    n_junk: int


def evaluation_rows(images: ArtifactRef, config: EvaluateConfig) -> EvaluationRows:
    """Return the test images of an index artefact, junk left out, and their splits.

    Raises DataError where there is no query or no gallery image.
    """
    table = pq.read_table(images.folder / "images.parquet", columns=["path", "split", "pid", "camid"])
    split, pid, camid = (table[name].to_numpy() for name in ("split", "pid", "camid"))
    junk = (split == "gallery") & (pid == JUNK)
    query, gallery = np.flatnonzero(split == "query"), np.flatnonzero((split == "gallery") & ~junk)
    for name, rows in (("query", query), ("gallery", gallery)):
        if not len(rows):
            raise DataError(f"{images.folder}/images.parquet has no usable {name} image; check the data set's split")
    position = np.concatenate([query, gallery])
    path = np.array(table["path"].to_pylist(), dtype=object)
    found = Images(position, path[position], pid[position], camid[position])
    draws = gallery_draws(images, config)
    published = Split(slice(0, len(query)), slice(len(query), len(position)), config.exclude)
    splits = [drawn_split(found.pid, seed) for seed in range(draws)] or [published]
    return EvaluationRows(found, splits, bool(draws), int(junk.sum()))


def gallery_draws(images: ArtifactRef, config: EvaluateConfig) -> int:
    """Return how many galleries are drawn, 0 for the data set's own split."""
    if config.gallery_draws is not None:
        return config.gallery_draws
    return VEHICLEID_DRAWS if read_json(images.folder / "dataset.json")["reader"] == "vehicleid" else 0


def drawn_split(pid_N: Ints, seed: int) -> Split:
    """Draw one gallery image an identity; all others are queries, and no camera is left out."""
    order = np.random.default_rng(seed).permutation(len(pid_N))
    _, first = np.unique(pid_N[order], return_index=True)
    gallery = np.sort(order[first])
    return Split(np.setdiff1d(np.arange(len(pid_N)), gallery), gallery, "none")
