"""The image tokens that the language model gets: all, or only those of patches that the body touches.

Padding a 1:2 crop to a square makes half of the patches show nothing. `caption.image_tokens=body` leaves their tokens
out. The vision tower still sees the whole square, and every token keeps its position id, so nothing else changes. With
`body_only`, the vision tower does not see them either (`captioning.engines.body_tower`).

Shape legend: B batch, L prompt tokens, N columns, P image tokens, D width.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from captioning.engines.family import Family
from captioning.engines.slots.prompts import Prompts
from captioning.framing import Box, body_of

_SIZES: Final = 8
"""Number of prompt lengths for compiled code, which is compiled once per length."""


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """The patches of a square input.

    side, patch: in pixels. before: class tokens before the patches. dropped: tokens that the model leaves out, from the
    first on.
    """

    side: int
    patch: int
    before: int
    dropped: int

    @classmethod
    def of(cls, family: Family) -> PatchGrid:
        """Return the grid of the first view of a family."""
        return cls(side=family.side, patch=family.patch, before=family.class_tokens, dropped=family.dropped)

    @property
    def per_side(self) -> int:
        """Number of patches in a row."""
        return self.side // self.patch

    def window(self, body: Box) -> Box:
        """Return the smallest rectangle of patches that covers `body`, in patches."""
        left, top = body.left // self.patch, body.top // self.patch
        right, bottom = (min(self.per_side, -(-edge // self.patch)) for edge in (body.right, body.bottom))
        return Box(left, top, right, bottom)

    def inside(self, window: Box) -> NDArray[np.bool_]:
        """Return True for the image tokens to keep [P]: the patches in `window`, and the class token."""
        patches = np.zeros((self.per_side, self.per_side), bool)
        patches[window.top : window.bottom, window.left : window.right] = True
        return np.concatenate([np.ones(self.before, bool), patches.ravel()])[self.dropped :]


def kept_tokens(images: Sequence[Image.Image], grid: PatchGrid) -> NDArray[np.bool_]:
    """Return which image tokens to keep for framed images [B, P]."""
    return np.stack([grid.inside(grid.window(body_of(image))) for image in images])


def image_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the features of all images for the language model, one after the other [B * P, D]."""
    return torch.cat(list(model.model.get_image_features(**inputs).pooler_output))


def embed_prompts(
    model: Any,
    prompt_BL: torch.Tensor,
    features: torch.Tensor,
    kept_BP: NDArray[np.bool_] | None = None,
    *,
    fixed: bool = False,
) -> Prompts:
    """Return the prompt with the features of each image in the place of its image tokens.

    prompt_BL: the same tokens in each row. features: as of `image_features`. kept_BP: the image tokens to keep; None
    keeps all. fixed: pad to one of few lengths, for a compiled model.
    """
    batch, length = prompt_BL.shape
    is_image_BL = prompt_BL == model.config.image_token_id
    embeds_BLD = model.get_input_embeddings()(prompt_BL)
    embeds_BLD = embeds_BLD.masked_scatter(is_image_BL[:, :, None], features.to(embeds_BLD))
    device = prompt_BL.device
    if kept_BP is None:
        places_BN, counts_B = np.arange(length)[None].repeat(batch, axis=0), np.full(batch, length)
    else:
        places_BN, counts_B = keep_places(is_image_BL[0].cpu().numpy(), kept_BP, fixed=fixed)
        places = torch.from_numpy(places_BN).to(device)
        embeds_BLD = embeds_BLD.take_along_dim(places[:, :, None], dim=1)
    return Prompts(
        embeds=embeds_BLD,
        positions=torch.from_numpy(places_BN).to(device),
        counts=counts_B,
        after=np.full(batch, length),
    )


def keep_places(
    is_image_L: NDArray[np.bool_], kept_BP: NDArray[np.bool_], *, fixed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the kept prompt tokens in each row [B, N], and their number [B].

    Rows with fewer tokens than N end with other places, as padding. N depends on the batch, the kept places do not.
    """
    batch, tokens = kept_BP.shape
    kept_BL = np.ones((batch, len(is_image_L)), bool)
    kept_BL[:, is_image_L] = kept_BP
    widest = int(kept_BP.sum(axis=1).max())
    if fixed:
        step = -(-tokens // _SIZES)
        widest = min(tokens, -(-widest // step) * step)
    columns = len(is_image_L) - tokens + widest
    order_BL = np.argsort(~kept_BL, axis=1, kind="stable")
    return order_BL[:, :columns], kept_BL.sum(axis=1)
