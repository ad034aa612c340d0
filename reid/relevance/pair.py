"""The maps of a pair of images: what made them similar, what CFF and CGI attend to, and whether deletion confirms it.

Shapes: a pair has two images, the query and the gallery image; R rows and C columns of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.errors import ConfigError
from reid.inputs.augment import normalize
from reid.inputs.pixel_cache import resized
from reid.relevance.faithfulness import SHARE, Drops, measure_drops
from reid.relevance.grid import PatchGrid, grid_of
from reid.relevance.maps import (
    TokenMaps,
    check_mode,
    chosen_method,
    fusion_maps,
    inversion_maps,
    similarity_maps,
)
from reid.relevance.overlay import Floats
from reid.relevance.propagation import Method
from reid.relevance.sheet import Panel, PanelGroup, SheetRow, draw_sheet
from reid.tasks.base import Task

SEEDS: Final = 20
"""Random choices of patches per image, with which the deletion of the most relevant and central ones is compared."""
_EXAMPLE: Final = "'a woman in a red coat'"


_VISIBLE: Final = 5e-5
"""Smaller falls are printed as 0.0000."""


@dataclass(frozen=True, kw_only=True)
class PairMaps:
    """The maps of a query and a gallery image.

    similarity: cosine of their features. maps_2RC: `reid.relevance.maps.similarity_maps` of each image with the other
    as its target. drops: of deleting patches of the query. fusion, inversion: cross-attention of CFF and CGI; None if
    the model lacks them, or without captions. images: as encoded, at any size.
    """

    images: tuple[Image.Image, Image.Image]
    grid: PatchGrid
    mode: str
    method: Method
    similarity: float
    maps_2RC: Floats
    drops: Drops
    fusion: TokenMaps | None
    inversion: TokenMaps | None

    def lines(self) -> Iterator[str]:
        """Yield what to print: the similarity, what deletion does to it, and how the map compares with the controls."""
        drops = self.drops
        most, center, least = float(drops.most_Q[0]), float(drops.center_Q[0]), float(drops.least_Q[0])
        random, deviation = float(drops.random_QS.mean()), float(drops.random_QS.std(ddof=1))
        yield f"similarity {self.similarity:.4f} ({self.mode} mode, {self.method})"
        yield (
            f"deleting {100 * SHARE:.0f} % of the query's patches lowers it by {most:.4f} (most relevant), by "
            f"{center:.4f} (center of the image), by {random:.4f} ± {deviation:.4f} (random, {SEEDS} choices), by "
            f"{least:.4f} (least)"
        )
        falls = (drops.most_Q, drops.center_Q, drops.random_QS, drops.least_Q)
        if all((np.abs(fall) < _VISIBLE).all() for fall in falls):
            yield "this check shows nothing about the map: no deletion changes the similarity in four decimals"
            return
        over_center = "beats" if most > center else "does not beat"
        yield (
            f"for this query, the map {over_center} the center of the image and {_beaten(most, drops.random_QS)}; the "
            f"center {_beaten(center, drops.random_QS)}"
        )

    def draw(self, titles: tuple[str, str]) -> Image.Image:
        """Return the sheet of maps. titles: of the two rows."""
        rows = [
            SheetRow(title=title, image=image, groups=self._groups(number))
            for number, (title, image) in enumerate(zip(titles, self.images, strict=True))
        ]
        heading = f"similarity {self.similarity:.3f} in {self.mode} mode"
        return draw_sheet(rows, self.grid, heading, _notes(self))

    def _groups(self, number: int) -> list[PanelGroup]:
        own = [PanelGroup("Image tower", [Panel(self.method, self.maps_2RC[number])])]
        named = (
            ("CFF: what each token of the prompt attends to", self.fusion),
            ("CGI: what its queries attend to", self.inversion),
        )
        return own + [PanelGroup(title, _panels(maps, number)) for title, maps in named if maps is not None]


def _beaten(fall: float, random_QS: Floats) -> str:
    return f"beats {int((fall > random_QS).sum())} of {random_QS.size} random choices"


def _panels(maps: TokenMaps, number: int) -> list[Panel]:
    values_NRC = maps.maps_BNRC[number].cpu().numpy()
    shares_NRC = values_NRC / values_NRC.sum((1, 2), keepdims=True).clip(1e-12)
    of_class = maps.class_BN[number].tolist()
    titles = [
        f"{label} (class {100 * share:.0f} %)" if share >= 0.005 else label
        for label, share in zip(maps.labels, of_class, strict=True)
    ]
    return [Panel(title, map_RC) for title, map_RC in zip(titles, shares_NRC, strict=True)]


def _notes(pair: PairMaps) -> list[str]:
    drawn = [
        "Gray: at most an even share. Color: more; peak Nx is the highest patch, in even shares.",
        "Image tower, gradient: patches that make the two images similar."
        if pair.method == "gradient"
        else "Image tower, rollout: patches that the embedding draws on, whether or not they make the images similar.",
    ]
    if pair.fusion is not None:
        drawn.append("CFF: fused mode only; class N %: share of attention on the class token, which is not on the map.")
    if pair.inversion is not None:
        drawn.append("CGI: the learnable queries, given the caption; used in training only.")
    return drawn


def explain_pair(
    task: Task,
    images: tuple[Image.Image, Image.Image],
    *,
    mode: str | None = None,
    method: str | None = None,
    captions: Sequence[str] = (),
    device: str = "cpu",
) -> PairMaps:
    """Return the maps of two images.

    Args:
        task: in evaluation mode, on `device`.
        images: the query and the gallery image, RGB, of any size.
        mode: the task's default if None.
        method: gradient if None.
        captions: of both images, or one for both; without captions, there are no maps of CGI.
        device: "cpu" or "cuda:N".

    Raises:
        ConfigError: the task lacks the mode or the method, or needs the cameras of the images (camera embeddings).
    """
    if task.sie:
        raise ConfigError(
            "explain: this model has camera embeddings, but the cameras of the two images are unknown; use a model "
            "trained with train.sie=0"
        )
    mode, chosen = mode or next(iter(task.encoders())), chosen_method(task, method)
    check_mode(task, mode)
    images_2CHW, encode = _pixels(task, images, device), task.encoders()[mode]
    with torch.no_grad():
        others_2F = encode(images_2CHW).flip(0)
    maps_2RC, similarity_2 = similarity_maps(task, images_2CHW, others_2F, mode=mode, method=chosen)
    grid = grid_of(task.backbone, task.preprocess.height, task.preprocess.width)
    has_fusion = "fused" in task.encoders()
    return PairMaps(
        images=images,
        grid=grid,
        mode=mode,
        method=chosen,
        similarity=float(similarity_2[0]),
        maps_2RC=maps_2RC.cpu().numpy(),
        drops=measure_drops(encode, images_2CHW[:1], others_2F[:1], maps_2RC[:1], grid, seeds=SEEDS),
        fusion=fusion_maps(task, images_2CHW) if has_fusion else None,
        inversion=_inversion(task, images_2CHW, captions),
    )


def _inversion(task: Task, images_2CHW: Tensor, captions: Sequence[str]) -> TokenMaps | None:
    if not captions:
        return None
    if len(captions) > 2:
        raise ConfigError(f"explain: give one or two captions, the query's first, such as --caption {_EXAMPLE}")
    return inversion_maps(task, images_2CHW, [captions[0], captions[-1]])


def _pixels(task: Task, images: Sequence[Image.Image], device: str) -> Tensor:
    """Return the images as the model reads them: resized and normalized, float32 [B, 3, H, W]."""
    shape = task.preprocess
    pixels_BHWC = torch.from_numpy(np.stack([resized(image, shape.height, shape.width) for image in images])).to(device)
    return normalize(pixels_BHWC.permute(0, 3, 1, 2), shape.mean, shape.std)
