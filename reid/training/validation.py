"""Evaluation during training: retrieval among held-out training identities, or on the test set.

Each held-out image is ranked against all other held-out images, each test query against the gallery. Images of the same
identity and camera are excluded, as in the test protocol. If every identity appears in one camera only (data without
camera labels), images are not excluded by camera; a held-out query is still excluded from its own ranking.

Shapes: N images that are embedded, Q queries, G gallery images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from reid.config.train import TrainConfig
from reid.inputs.evaluation_rows import has_match
from reid.inputs.image_rows import ImageRows

if TYPE_CHECKING:
    from reid.tasks.base import Task

Ints = NDArray[np.int64]
_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class RankedImages:
    """The images of an evaluation; `query_Q` and `gallery_G` are positions among the N."""

    positions_N: Ints
    """Row of each image in the pixel cache."""
    pids_N: Ints
    camids_N: Ints
    """Camera id in the dataset, which selects the camera embedding."""
    excluded_by_N: Ints
    """Images of one identity that share this number are excluded from each other's rankings."""
    query_Q: Ints
    gallery_G: Ints


def ranked_held_out(rows: ImageRows) -> RankedImages:
    """Return the held-out `rows`: each is a query, and all of them are the gallery."""
    everyone = np.arange(len(rows))
    seen = np.unique(np.stack([rows.pid, rows.camid]), axis=1)[0]
    crosses = len(np.unique(seen)) < len(seen)
    return RankedImages(
        positions_N=rows.position,
        pids_N=rows.pid,
        camids_N=rows.camid,
        excluded_by_N=rows.camid if crosses else everyone,
        query_Q=everyone,
        gallery_G=everyone,
    )


def ranked_test(rows: ImageRows) -> RankedImages:
    """Return queries and gallery of `rows` without junk, in an order that does not depend on paths.

    rows: all rows of images.parquet. Raises DataError when queries or gallery are empty.
    """
    rows = rows.take(np.lexsort((rows.sha256, rows.camid, rows.pid)))  # ties are ranked in this order
    query, gallery = rows.of_split("query"), rows.of_split("gallery")
    if not len(query) or not len(gallery):
        raise DataError(
            "train.validation.images=test needs queries and a gallery, but this dataset lacks one of them: "
            "set train.validation.images=held_out"
        )
    n, chosen = len(query), rows.take(np.concatenate([query, gallery]))
    pid, camid = chosen.pid, chosen.camid
    crosses = has_match(pid[:n], camid[:n], pid[n:], camid[n:], "same_camera").any()
    return RankedImages(
        positions_N=chosen.position,
        pids_N=pid,
        camids_N=camid,
        excluded_by_N=camid if crosses else np.arange(len(chosen)),
        query_Q=np.arange(n),
        gallery_G=np.arange(n, len(chosen)),
    )


class Validator:
    """Evaluation of a task during its training; leaves the task unchanged.

    Args:
        images: the images to rank.
        pixels: uint8 [all images, H, W, 3].
        config: the run.
        device: the device of the task in training.
    """

    def __init__(self, images: RankedImages, pixels: NDArray[np.uint8], config: TrainConfig, device: str) -> None:
        self._images, self._pixels, self._mode, self._device = images, pixels, config.validation.mode, device

    def __call__(self, task: Task) -> dict[str, float]:
        """Return mAP, mINP and rank1 as fractions.

        Raises DataError if the features are not finite or no query has a match.
        """
        from reid.ranking.metrics import evaluate_ranking

        images, training = self._images, task.training
        features_ND = self._features(task.eval())
        task.train(training)
        query, gallery = images.query_Q, images.gallery_G
        ranking = evaluate_ranking(
            features_ND[query],
            features_ND[gallery],
            images.pids_N[query],
            images.pids_N[gallery],
            images.excluded_by_N[query],
            images.excluded_by_N[gallery],
            top_k=1,
        )
        return {"mAP": ranking.mAP, "mINP": ranking.mINP, "rank1": float(ranking.cmc[0])}

    def _features(self, task: Task) -> NDArray[np.float32]:
        from reid.inputs.embed import embed

        return embed(
            task.encoders()[self._mode],
            self._pixels,
            self._images.positions_N,
            cameras=task.camera_numbers(self._images.camids_N),
            batch_size=_BATCH,
            device=self._device,
            mean=task.preprocess.mean,
            std=task.preprocess.std,
        )
