"""Search the gallery of an indexed dataset with a sentence or an image, using a trained model.

A sentence is compared with the images in CLIP's joint space (which L_con trains), an image by the retrieval features of
the model. Scores are cosine similarities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.artifacts.store import ArtifactRef
from data.device import resolve_device
from data.errors import ConfigError, DataError, RejectedRow
from data.images.decode import REASONS, open_rgb
from data.process.environment import exact_float32
from data.stages.stage import RunContext
from reid.inputs.image_rows import read_rows
from reid.inputs.pixel_cache import PixelStage, load_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from reid.tasks.base import Encoder, Task


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image of the result. rank: from 1. score: cosine similarity."""

    rank: int
    score: float
    path: str
    pid: int
    camid: int


def search(run: RunContext, *, model: ArtifactRef, query: str | Path, top: int = 10, device: str = "auto") -> list[Hit]:
    """Return the `top` gallery images nearest to `query`: a sentence (str) or an image file (Path).

    model: the train artifact. Raises DataError when the gallery is empty or the query image is unusable (which is
    checked first), ConfigError for an empty or too long sentence, WeightsError when the model cannot be loaded.
    """
    import torch

    from reid.inputs.embed import embed
    from reid.ranking.similarity import FeatureRows, similarity_blocks
    from reid.training.checkpoint import load_task

    if top < 1:
        raise ConfigError(f"search: top must be at least 1 (given: {top})")
    picture = open_query(query) if isinstance(query, Path) else None
    rows = read_rows(run.images)
    gallery = rows.take(rows.of_split("gallery"))
    if not len(gallery):
        raise DataError(f"{run.images.file} does not list any gallery images to search; check the split of the dataset")
    where = resolve_device(device, torch.cuda, "evaluate.device")
    task = load_task(model.folder, where)
    shape = task.preprocess
    cache = PixelStage(height=shape.height, width=shape.width).make(run)
    with exact_float32(torch):
        wanted_1D, encode = _by_sentence(task, str(query)) if picture is None else _by_image(task, picture, where)
        features_ND = embed(
            encode,
            load_pixels(cache.ref),
            gallery.position,
            batch_size=64,
            device=where,
            mean=shape.mean,
            std=shape.std,
            cameras=task.camera_numbers(gallery.camid.tolist()),
            progress=run.progress,
        )
        similarities = similarity_blocks(FeatureRows(wanted_1D.cpu(), "query"), FeatureRows(features_ND, "gallery"))
        scores_N = next(similarities)[1][0, : len(gallery)]
    best = np.argsort(-scores_N, kind="stable")[:top]
    return [
        Hit(
            rank=rank,
            score=float(scores_N[place]),
            path=gallery.path[place],
            pid=int(gallery.pid[place]),
            camid=int(gallery.camid[place]),
        )
        for rank, place in enumerate(best, start=1)
    ]


def _by_sentence(task: Task, sentence: str) -> tuple[Tensor, Encoder]:
    """Return the feature [1, D] of the sentence, and the encoder of images into the same space.

    Raises ConfigError for a sentence that is empty or too long for the model.
    """
    import torch

    n_words, n_most = len(task.backbone.tokenizer.words(sentence)), task.backbone.context - 2
    if not sentence.strip() or not 0 < n_words <= n_most:
        raise ConfigError(
            f"search: the sentence has {n_words if sentence.strip() else 0} tokens, but this model reads 1 to {n_most};"
            " describe a person in one or two sentences"
        )

    def encode(images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
        return task.encode_image(images_BCHW, cameras_B).joint_BD

    with torch.inference_mode():
        return task.backbone.text([sentence]).float(), encode


def open_query(path: Path) -> Image.Image:
    """Return the query image at `path` in RGB. Raises DataError, with the reason, if it is unusable."""
    try:
        return open_rgb(path)
    except RejectedRow as rejected:
        raise DataError(
            f"search: the query image {path} cannot be used: {REASONS[rejected.reason]} ({rejected.reason})."
            " Give the path of an intact JPEG, PNG, WebP, TIFF, BMP or GIF file"
        ) from rejected


def _by_image(task: Task, image: Image.Image, device: str) -> tuple[Tensor, Encoder]:
    """Return the retrieval feature [1, D] of the query image, and the encoder of gallery images."""
    import torch

    from reid.inputs.augment import normalize

    if task.sie:
        raise ConfigError(
            "search: this model has camera embeddings, but the camera of the query image is unknown; search with a "
            "sentence, or use a model trained with train.sie=0"
        )
    shape, encode = task.preprocess, next(iter(task.encoders().values()))
    pixels_HWC = np.array(image.resize((shape.width, shape.height), Image.Resampling.BICUBIC))
    images_BCHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].to(device)
    with torch.inference_mode():
        return encode(normalize(images_BCHW, shape.mean, shape.std)).float(), encode
