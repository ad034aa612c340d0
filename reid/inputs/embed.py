"""Encode many images to features, one float32 row per image.

Shapes: N images, B of a batch, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.process.environment import exact_float32
from data.process.fixed_order import fixed_order
from data.progress import ProgressFn, silent
from reid.inputs.augment import normalize
from reid.inputs.loading import load_batches

EncodeFn = Callable[..., Tensor]
"""(images [B, 3, H, W]) or (images, camera numbers [B]) -> features [B, D]; any `reid.tasks.base.Encoder` qualifies."""
EncodeModesFn = Callable[..., Mapping[str, Tensor]]
"""Like `EncodeFn`, but returns mode -> features, such as `reid.tasks.base.Task.encode_modes`."""
Float32s = NDArray[np.float32]
_ONLY: Final = "only"


def embed(
    encode: EncodeFn,
    pixels: NDArray[np.uint8],
    indices: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device | str,
    mean: Sequence[float],
    std: Sequence[float],
    cameras: Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Path | None = None,
    progress: ProgressFn = silent,
) -> Float32s:
    """Return the features of ``pixels[indices]``, [N, D], in that order, without gradients.

    Args:
        encode: normalized float32 [B, 3, H, W] on `device` -> features [B, D]; already in evaluation mode. The
            feature of an image must not depend on the other images of its batch.
        pixels: uint8 [all images, H, W, 3].
        indices: rows of `pixels` to encode.
        batch_size: images per batch; changes results by rounding only.
        device: the device of `encode`.
        mean, std: of pixels in 0..1, per channel.
        cameras: camera numbers of the images to encode, [N], for encoders that need them (``Task.camera_numbers``).
        flip: average with the features of the mirrored image, before any normalization.
        dtype: bfloat16 or float16 runs `encode` under autocast.
        out: a .npy file to write the features to; the result is then its memory map.
        progress: called after every batch with (encoded images, all images, note).
    """
    starts = range(0, len(indices), batch_size)
    batches = load_batches(pixels, (indices[start : start + batch_size] for start in starts), device)
    return embed_batches(
        encode,
        batches,
        len(indices),
        mean=mean,
        std=std,
        cameras=cameras,
        flip=flip,
        dtype=dtype,
        out=out,
        progress=progress,
    )


def embed_batches(
    encode: EncodeFn,
    batches: Iterable[Tensor],
    count: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    cameras: Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Path | None = None,
    progress: ProgressFn = silent,
) -> Float32s:
    """Return the features of the images in `batches`, [N, D], in that order, without gradients.

    Args:
        encode: as for `embed`.
        batches: uint8 [B, 3, H, W], on the device of `encode`.
        count: the number N of images in all batches.
        mean, std, cameras, flip, dtype, out, progress: as for `embed`.
    """

    def only(images_BCHW: Tensor, *more: Tensor) -> dict[str, Tensor]:
        return {_ONLY: encode(images_BCHW, *more)}

    found = embed_modes(
        only,
        batches,
        count,
        mean=mean,
        std=std,
        cameras=cameras,
        flip=flip,
        dtype=dtype,
        out=lambda _: out,
        progress=progress,
    )
    return found.get(_ONLY, np.empty((0, 0), np.float32))


@fixed_order(torch)
@exact_float32(torch)
def embed_modes(
    encode: EncodeModesFn,
    batches: Iterable[Tensor],
    count: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    cameras: Tensor | None = None,
    flip: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Callable[[str], Path | None],
    progress: ProgressFn = silent,
) -> dict[str, Float32s]:
    """Return mode -> features of the images in `batches`, [N, D] each, from one pass over the images.

    Args:
        encode: as for `embed`, but for all modes at once.
        batches, count: as for `embed_batches`.
        mean, std, cameras, flip, dtype, progress: as for `embed`.
        out: returns the .npy file for the features of a mode, or None to keep them in memory.
    """
    features: dict[str, Float32s] = {}
    done = 0
    for pixels_BCHW in batches:
        device, stop = pixels_BCHW.device, done + len(pixels_BCHW)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            more = () if cameras is None else (cameras[done:stop].to(device),)
            found = _encode(encode, normalize(pixels_BCHW, mean, std), more, flip)
        for mode, rows_BD in found.items():
            if mode not in features:
                features[mode] = _allocate(count, rows_BD.shape[1], out(mode))
            features[mode][done:stop] = rows_BD.cpu().numpy()
        done = stop
        progress(done, count, "encoding")
    if done != count:
        raise ValueError(f"the batches have {done} images instead of {count}")
    return features


def _encode(encode: EncodeModesFn, images_BCHW: Tensor, more: tuple[Tensor, ...], flip: bool) -> dict[str, Tensor]:
    found = {mode: rows_BD.float() for mode, rows_BD in encode(images_BCHW, *more).items()}
    if not flip:
        return found
    mirrored = encode(images_BCHW.flip(3), *more)
    return {mode: (rows_BD + mirrored[mode].float()) / 2 for mode, rows_BD in found.items()}


def _allocate(rows: int, width: int, out: Path | None) -> Float32s:
    if out is None:
        return np.empty((rows, width), np.float32)
    out.parent.mkdir(parents=True, exist_ok=True)
    mapped: Float32s = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=(rows, width))
    return mapped
