"""The test images of a dataset and their split into queries and gallery: published or drawn at random.

Shapes: N test images; Q queries and G gallery images among them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from data.errors import DataError
from data.people import UNKNOWN_CAMERA, Mask, cameras_known, is_junk, is_person
from data.stages.images import IndexedImages
from reid.config.evaluate import EvaluateConfig, Exclude
from reid.inputs.image_rows import ImageRows, Ints, read_rows

VEHICLEID_DRAWS: Final = 10
"""Galleries of the VehicleID protocol (Liu et al., CVPR 2016)."""


_NO_CAMERA: Final = np.iinfo(np.int64).min + 1
"""Stands for an unknown camera in the gallery, so that it differs from every camera of a query."""


class RankingSplit(NamedTuple):
    """Positions of queries and gallery among the test images, and which images to exclude from a ranking."""

    query: slice | Ints
    gallery: slice | Ints
    exclude: Exclude


class EvaluationRows(NamedTuple):
    """The test images and the splits of them to rank. The published queries come first."""

    images: ImageRows
    splits: list[RankingSplit]
    drawn: bool
    """True if the galleries were drawn."""
    n_junk: int
    """Number of junk images, which are left out."""
    notices: tuple[str, ...]
    """Sentences for the user before the evaluation."""
    cameras: bool
    """False if the cameras are unknown: images are not excluded by camera then."""


def check_test_split(images: IndexedImages, config: EvaluateConfig) -> tuple[str, ...]:
    """Return notices about the test split of `images` under `config`.

    Reads only images.parquet and dataset.json, so that it can run before long stages. Raises the same DataError as the
    evaluate stage when queries or gallery are empty, or when none of the queries has a match.
    """
    return evaluation_rows(images, config).notices


def evaluation_rows(images: IndexedImages, config: EvaluateConfig) -> EvaluationRows:
    """Return the test images without junk, and their splits.

    Raises DataError when queries or gallery are empty, or when none of the queries has a match.
    """
    rows = read_rows(images)
    junk, person = is_junk(rows.pid), is_person(rows.split, rows.pid)
    query, gallery = rows.of_split("query"), rows.of_split("gallery")
    for name, chosen in (("query", query), ("gallery", gallery)):
        if not len(chosen):
            raise DataError(f"{images.file} does not list any usable {name} image; check the split of the dataset")
    position = np.concatenate([query, gallery])
    found = rows.take(position)
    draws = gallery_draws(images, config)
    cameras = cameras_known(rows.camid)
    exclude = config.exclude if cameras else "none"
    published = RankingSplit(slice(0, len(query)), slice(len(query), len(position)), exclude)
    splits = [drawn_split(found.pid, person[position], seed) for seed in range(draws)] or [published]
    notices = (
        *_without_cameras(cameras, applied=not draws and config.exclude == "same_camera"),
        *_unmatched(found, splits[0], images),
    )
    return EvaluationRows(found, splits, bool(draws), int((junk & (rows.split != "train")).sum()), notices, cameras)


def gallery_draws(images: IndexedImages, config: EvaluateConfig) -> int:
    """Return the number of galleries to draw, 0 for the published split."""
    if config.gallery_draws is not None:
        return config.gallery_draws
    return VEHICLEID_DRAWS if images.description.reader == "vehicleid" else 0


def drawn_split(pid_N: Ints, person_N: Mask, seed: int) -> RankingSplit:
    """Draw one gallery image per person; the others are queries, and images are not excluded by camera.

    pid_N: identities. person_N: False for distractors, which all stay in the gallery.
    """
    order = np.random.default_rng(seed).permutation(len(pid_N))
    people = order[person_N[order]]
    _, first = np.unique(pid_N[people], return_index=True)
    gallery = np.sort(np.concatenate([people[first], np.flatnonzero(~person_N)]))
    return RankingSplit(np.setdiff1d(np.arange(len(pid_N)), gallery), gallery, "none")


def _without_cameras(cameras: bool, *, applied: bool) -> tuple[str, ...]:
    """Return a notice if the cameras are unknown but the rule would be `applied`."""
    if cameras or not applied:
        return ()
    return (
        "the cameras of this dataset are unknown: evaluation does not exclude images of the query's own camera, so"
        " scores are not comparable with those of datasets with cameras",
    )


def _unmatched(images: ImageRows, split: RankingSplit, index: IndexedImages) -> tuple[str, ...]:
    """Return a notice about queries without a match, if any. Raises DataError if all queries lack one."""
    query, gallery = images.take(split.query), images.take(split.gallery)
    alone = np.flatnonzero(~has_match(query.pid, query.camid, gallery.pid, gallery.camid, split.exclude))
    where = " from another camera" if split.exclude == "same_camera" else ""
    if len(alone) == len(query.pid):
        remedy = (
            "; if the cameras are unknown, leave camid empty in the manifest, or --set evaluate.exclude=none"
            if where
            else ""
        )
        raise DataError(
            f"none of the queries in {index.file} has a gallery image of the same identity{where}, so"
            f" the dataset cannot be evaluated. Check pid and camid of the dataset{remedy}"
        )
    if not len(alone):
        return ()
    return (
        f"{len(alone):,} of {len(query.pid):,} queries do not have a gallery image of their identity{where},"
        f" such as {query.path[alone[0]]}: evaluation skips them",
    )


def has_match(query_pids: Ints, query_cams: Ints, gallery_pids: Ints, gallery_cams: Ints, exclude: Exclude) -> Mask:
    """Return the mask [Q] of queries that have a gallery image of their identity which `exclude` does not exclude.

    query_pids, query_cams: [Q]. gallery_pids, gallery_cams: [G], at least one. An unknown camera is never excluded.
    """
    known, place = np.unique(gallery_pids, return_inverse=True)
    at = np.searchsorted(known, query_pids).clip(max=len(known) - 1)
    found: Mask = known[at] == query_pids
    if exclude == "none":
        return found
    gallery_cams = np.where(gallery_cams == UNKNOWN_CAMERA, _NO_CAMERA, gallery_cams)
    lowest, highest = np.full(len(known), np.iinfo(np.int64).max), np.full(len(known), np.iinfo(np.int64).min)
    np.minimum.at(lowest, place, gallery_cams)
    np.maximum.at(highest, place, gallery_cams)
    # An identity has an image from another camera unless its lowest and highest camera are both the query's.
    return found & ((lowest[at] != query_cams) | (highest[at] != query_cams))
