"""Search the gallery of an indexed dataset with a sentence or an image, using a trained model.

A sentence is compared with the images in CLIP's joint space (which L_con trains), an image by the retrieval features of
the model. Scores are cosine similarities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.artifacts.store import ArtifactRef
from data.errors import ConfigError, DataError, RejectedRow
from data.images.decode import open_rgb, unusable_image
from data.process.environment import exact_float32
from data.stages.stage import RunContext
from reid.config.train import TrainConfig
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import PixelStage, load_pixels

if TYPE_CHECKING:
    from reid.embedding.embedder import Embedder


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image of the result. rank: from 1. score: cosine similarity. label: "" if the dataset has no text labels."""

    rank: int
    score: float
    path: str
    pid: int
    camid: int
    label: str = ""


def search(
    run: RunContext, *, model: ArtifactRef | TrainConfig, query: str | Path, top: int = 10, device: str = "auto"
) -> list[Hit]:
    """Return the `top` gallery images nearest to `query`: a sentence (str) or an image file (Path).

    model: the train artifact, or the config whose untrained backbone searches. Raises DataError when the gallery is
    empty or the query image is unusable (which is checked first), ConfigError for an empty or too long sentence,
    WeightsError when the model cannot be loaded.
    """
    import torch

    from reid.embedding.embedder import JOINT, Embedder
    from reid.ranking.similarity import FeatureRows, similarity_blocks

    if top < 1:
        raise ConfigError(f"search: top must be at least 1 (given: {top})")
    picture = open_query(query) if isinstance(query, Path) else None
    rows = read_rows(run.images)
    gallery = rows.take(rows.of_split("gallery"))
    if not len(gallery):
        raise DataError(f"{run.images.file} does not list any gallery images to search; check the split of the dataset")
    if isinstance(model, TrainConfig):
        embedder = Embedder.untrained(model, device=device)
    else:
        embedder = Embedder.load(model, device=device)
    mode = JOINT if picture is None else embedder.modes[0]
    wanted_1D = embedder.embed_texts([str(query)]) if picture is None else _of_picture(embedder, picture)
    shape = embedder.task.preprocess
    cache = PixelStage(height=shape.height, width=shape.width).make(run)
    features_ND = embedder.embed_pixels(
        load_pixels(cache.ref), gallery.position, mode=mode, cameras=gallery.camid, progress=run.progress
    )
    with exact_float32(torch):
        similarities = similarity_blocks(FeatureRows(wanted_1D, "query"), FeatureRows(features_ND, "gallery"))
        scores_N = next(similarities)[1][0, : len(gallery)]
    names = run.images.names()
    best = np.argsort(-scores_N, kind="stable")[:top]
    return [
        Hit(
            rank=rank,
            score=float(scores_N[place]),
            path=gallery.path[place],
            pid=int(gallery.pid[place]),
            camid=int(gallery.camid[place]),
            label=names(int(gallery.pid[place])).label,
        )
        for rank, place in enumerate(best, start=1)
    ]


def _of_picture(embedder: Embedder, picture: Image.Image) -> NDArray[np.float32]:
    """Return the retrieval feature [1, D] of the query image."""
    if embedder.needs_cameras:
        raise ConfigError(
            "search: this model has camera embeddings, but the camera of the query image is unknown; search with a "
            "sentence, or use a model trained with train.sie=0"
        )
    return embedder.embed_images([picture])


def open_query(path: Path) -> Image.Image:
    """Return the query image at `path` in RGB. Raises DataError, with the reason, if it is unusable."""
    try:
        return open_rgb(path)
    except RejectedRow as rejected:
        raise unusable_image(f"search: the query image {path}", rejected) from rejected
