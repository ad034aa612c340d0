"""Augmentation of a batch on its device: mirror, pad and crop, normalize, erase.

A plan for each image is first drawn on the CPU and then applied, so the same seed gives the same training images on any
device and with any number of processes: each process draws the plan of the global batch, in which every image has its
own noise seed, and applies its slice.

The order and the rules are those of CLIP-ReID's loader (``T.RandomHorizontalFlip``, ``T.Pad(10)``, ``T.RandomCrop``,
``T.Normalize``, timm's ``RandomErasing(mode="pixel", max_count=1)``): padding is black *before* normalization, so -1
after it with mean and std 0.5; erased pixels are standard normal noise *after* normalization.

Shapes: B images, C = 3 channels (RGB), H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from reid.config.train import AugmentConfig

_ATTEMPTS: Final = 10
_SEEDS: Final = 2**62


@dataclass(frozen=True, kw_only=True)
class AugmentPlan:
    """The augmentation of each of B images; all tensors are on the CPU.

    flip_B: bool. shift_B2: top and left of the crop in the padded image, pixels. erase_B4: top, left, height and width
    of the erased rectangle, pixels; height 0 if nothing is erased. noise_seed_B: seed of the rectangle's noise.
    """

    flip_B: Tensor
    shift_B2: Tensor
    erase_B4: Tensor
    noise_seed_B: Tensor

    def __len__(self) -> int:
        """Return B."""
        return len(self.flip_B)

    def slice(self, start: int, stop: int) -> AugmentPlan:
        """Return the plan of the images from `start` to `stop`, one process's part of a global batch."""
        return AugmentPlan(
            flip_B=self.flip_B[start:stop],
            shift_B2=self.shift_B2[start:stop],
            erase_B4=self.erase_B4[start:stop],
            noise_seed_B=self.noise_seed_B[start:stop],
        )


def draw_plan(count: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator) -> AugmentPlan:
    """Draw the plan of `count` images of `height` x `width` pixels.

    Always consumes the same number of draws from `generator`, a generator on the CPU.
    """
    flip_B = torch.rand(count, generator=generator) < config.flip_probability
    shift_B2 = torch.randint(0, 2 * config.pad + 1, (count, 2), generator=generator)
    erase_B4 = _draw_rectangles(count, height, width, config, generator)
    erased_B = torch.rand(count, generator=generator) < config.erase_probability
    erase_B4[~erased_B] = 0
    noise_seed_B = torch.randint(0, _SEEDS, (count,), generator=generator)
    return AugmentPlan(flip_B=flip_B, shift_B2=shift_B2, erase_B4=erase_B4, noise_seed_B=noise_seed_B)


def augment(
    pixels_BCHW: Tensor,
    plan: AugmentPlan,
    config: AugmentConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Apply `plan` to uint8 images and return them normalized, float32 [B, 3, H, W], on their device.

    Args:
        pixels_BCHW: uint8, in any memory order (a permuted [B, H, W, 3] needs no copy).
        plan: for these B images, drawn with `config` for this H and W.
        config: the settings with which the plan was drawn.
        mean, std: per channel, of pixels scaled to 0..1.
    """
    cropped_BCHW = _crop(pixels_BCHW, plan.shift_B2, config.pad)
    mirrored = torch.nonzero(plan.flip_B).flatten().to(pixels_BCHW.device)
    cropped_BCHW[mirrored] = cropped_BCHW[mirrored].flip(3)
    return _erase(normalize(cropped_BCHW, mean, std), plan)


def normalize(pixels_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(pixels / 255 - mean) / std`` as contiguous float32 [B, 3, H, W]."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels_BCHW.device).view(1, -1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=pixels_BCHW.device).view(1, -1, 1, 1)
    return pixels_BCHW.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).sub_(shift)


def _draw_rectangles(count: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    # As in timm: area and aspect are drawn up to ten times until the rectangle is smaller than the image.
    draws = torch.rand(2, count, _ATTEMPTS, generator=generator, dtype=torch.float64)
    area = (config.erase_min_area + draws[0] * (config.erase_max_area - config.erase_min_area)) * height * width
    aspect = torch.exp((2 * draws[1] - 1) * -math.log(config.erase_min_aspect))
    h = (area * aspect).sqrt().round().clamp(min=1).long()
    w = (area / aspect).sqrt().round().clamp(min=1).long()
    fits = (h < height) & (w < width)
    first = fits.int().argmax(1, keepdim=True)
    h, w, fits = (values.gather(1, first).squeeze(1) for values in (h, w, fits))
    place = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = (place[0] * (height - h + 1)).long()
    left = (place[1] * (width - w + 1)).long()
    return torch.stack([top, left, h, w], dim=1) * fits[:, None]


def _crop(pixels_BCHW: Tensor, shift_B2: Tensor, pad: int) -> Tensor:
    """Return a new tensor with the H x W window at `shift_B2` of each black-padded image."""
    if not pad:
        return pixels_BCHW.clone()
    height, width = pixels_BCHW.shape[2:]
    padded = F.pad(pixels_BCHW, (pad, pad, pad, pad))
    # A view of all windows, [B, 2 pad + 1, 2 pad + 1, C, H, W]; indexing copies one window per image.
    b, c, y, x = padded.stride()
    places = 2 * pad + 1
    windows = padded.as_strided((len(padded), places, places, padded.shape[1], height, width), (b, y, x, c, y, x))
    shift = shift_B2.to(padded.device)
    return windows[torch.arange(len(padded), device=padded.device), shift[:, 0], shift[:, 1]]


def _erase(images_BCHW: Tensor, plan: AugmentPlan) -> Tensor:
    noises = []
    generator = torch.Generator()
    chosen = torch.nonzero(plan.erase_B4[:, 2]).flatten().tolist()
    for index in chosen:
        _, _, height, width = plan.erase_B4[index].tolist()
        generator.manual_seed(int(plan.noise_seed_B[index]))
        noises.append(torch.randn(images_BCHW.shape[1] * height * width, generator=generator))
    if not chosen:
        return images_BCHW
    sizes = [len(noise) for noise in noises]
    on_device = torch.cat(noises).to(images_BCHW.device, non_blocking=True)  # one transfer instead of one per image
    for index, noise in zip(chosen, on_device.split(sizes), strict=True):
        top, left, height, width = plan.erase_B4[index].tolist()
        images_BCHW[index, :, top : top + height, left : left + width] = noise.view(-1, height, width)
    return images_BCHW
