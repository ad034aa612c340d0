"""The test images of a dataset, and which of them are queries and gallery: the published split, or drawn galleries.

Shapes: N test images, queries first; Q queries and G gallery images among them.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np

from data.errors import DataError
from data.people import Mask, is_junk, is_person
from data.stages.images import IndexedImages
from reid.config.evaluate import EvaluateConfig
from reid.inputs.image_rows import ImageRows, Ints, read_rows

VEHICLEID_DRAWS: Final = 10
"""Galleries of the VehicleID protocol (Liu et al., CVPR 2016)."""

Exclude = Literal["same_camera", "none"]


class Split(NamedTuple):
    """Places of the queries and of the gallery among the test images, and what a query's ranking leaves out."""

    query: slice | Ints
    gallery: slice | Ints
    exclude: Exclude


class EvaluationRows(NamedTuple):
    """The test images, queries first, and every split of them to rank."""

    images: ImageRows
    splits: list[Split]
    drawn: bool
    """Whether the galleries were drawn."""
    n_junk: int
    """Test images left out because they are junk."""
    notices: tuple[str, ...]
    """Sentences for the user, before the evaluation."""


def check_test_split(images: IndexedImages, config: EvaluateConfig) -> tuple[str, ...]:
    """Return notices about the test split of `images`, evaluated as `config` says.

    Reads images.parquet and dataset.json only, so that it can run before anything that takes hours. Raises DataError
    where there is no query, no gallery image, or no query with a match; `evaluate` raises the same.
    """
    return evaluation_rows(images, config).notices


def evaluation_rows(images: IndexedImages, config: EvaluateConfig) -> EvaluationRows:
    """Return the test images, junk left out, and their splits.

    Raises DataError where there is no query, no gallery image, or no query with a match.
    """
    rows = read_rows(images)
    junk, person = is_junk(rows.pid), is_person(rows.split, rows.pid)
    query, gallery = rows.of_split("query"), rows.of_split("gallery")
    for name, chosen in (("query", query), ("gallery", gallery)):
        if not len(chosen):
            raise DataError(f"{images.file} has no usable {name} image; check the split of the dataset")
    position = np.concatenate([query, gallery])
    found = rows.take(position)
    draws = gallery_draws(images, config)
    published = Split(slice(0, len(query)), slice(len(query), len(position)), config.exclude)
    splits = [drawn_split(found.pid, person[position], seed) for seed in range(draws)] or [published]
    notices = _unmatched(found, splits[0], images)
    return EvaluationRows(found, splits, bool(draws), int((junk & (rows.split != "train")).sum()), notices)


def gallery_draws(images: IndexedImages, config: EvaluateConfig) -> int:
    """Return how many galleries are drawn, 0 for the published split."""
    if config.gallery_draws is not None:
        return config.gallery_draws
    return VEHICLEID_DRAWS if images.description.reader == "vehicleid" else 0


def drawn_split(pid_N: Ints, person_N: Mask, seed: int) -> Split:
    """Draw one gallery image per person; the others are queries, and no camera is left out.

    pid_N, person_N: the identities, and whether each is a person's; distractors all stay in the gallery.
    """
    order = np.random.default_rng(seed).permutation(len(pid_N))
    people = order[person_N[order]]
    _, first = np.unique(pid_N[people], return_index=True)
    gallery = np.sort(np.concatenate([people[first], np.flatnonzero(~person_N)]))
    return Split(np.setdiff1d(np.arange(len(pid_N)), gallery), gallery, "none")


def _unmatched(images: ImageRows, split: Split, index: IndexedImages) -> tuple[str, ...]:
    """Return a notice about queries without a match; raise DataError if that is all of them."""
    query, gallery = images.take(split.query), images.take(split.gallery)
    alone = np.flatnonzero(~has_match(query.pid, query.camid, gallery.pid, gallery.camid, split.exclude))
    where = " from another camera" if split.exclude == "same_camera" else ""
    if len(alone) == len(query.pid):
        remedy = "; for data without cameras use exclude='none' (--set evaluate.exclude=none)" if where else ""
        raise DataError(
            f"{index.file} has no query with a gallery image of the same identity{where}, so nothing"
            f" can be evaluated. Check pid and camid of the dataset{remedy}"
        )
    if not len(alone):
        return ()
    return (
        f"{len(alone):,} of {len(query.pid):,} queries have no gallery image of their identity{where},"
        f" such as {query.path[alone[0]]}: evaluation skips them",
    )


def has_match(query_pids: Ints, query_cams: Ints, gallery_pids: Ints, gallery_cams: Ints, exclude: Exclude) -> Mask:
    """Return the mask [Q] of queries with a gallery image of their identity that `exclude` lets count.

    query_pids, query_cams: [Q]. gallery_pids, gallery_cams: [G], at least one.
    """
    known, place = np.unique(gallery_pids, return_inverse=True)
    at = np.searchsorted(known, query_pids).clip(max=len(known) - 1)
    found: Mask = known[at] == query_pids
    if exclude == "none":
        return found
    lowest, highest = np.full(len(known), np.iinfo(np.int64).max), np.full(len(known), np.iinfo(np.int64).min)
    np.minimum.at(lowest, place, gallery_cams)
    np.maximum.at(highest, place, gallery_cams)
    # Another camera than the query's is among an identity's unless its first and its last are both the query's.
    return found & ((lowest[at] != query_cams) | (highest[at] != query_cams))
