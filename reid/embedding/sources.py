"""Images that a caller may pass, turned into pixels of the model's size.

Shapes: H, W of the given image; h, w of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import ConfigError, RejectedRow
from data.images.decode import open_rgb, to_rgb, unusable_image
from reid.inputs.pixel_cache import Pixels, resized
from reid.tasks.base import Preprocess

ImageSource = str | Path | Image.Image | NDArray[Any] | Tensor
"""One image: a path; a PIL image of any mode, already upright; an RGB array [H, W, 3]; or an RGB tensor [3, H, W].

Arrays and tensors are uint8, or floating-point from 0 to 1. Nothing is normalized yet: the model does that.
"""


def pixels_of(source: ImageSource, shape: Preprocess, name: str) -> Pixels:
    """Return the pixels of one image, uint8 [h, w, 3], as the pixel cache has them.

    name: of the image, for messages. Raises DataError, with the reason, for an unusable file, and ConfigError for an
    array or tensor that is not an image.
    """
    try:
        image = _opened(source, name)
    except RejectedRow as rejected:
        where = f" {source}" if isinstance(source, str | Path) else ""
        raise unusable_image(f"{name}{where}", rejected) from rejected
    return resized(image, shape.height, shape.width)


def _opened(source: ImageSource, name: str) -> Image.Image:
    if isinstance(source, str | Path):
        return open_rgb(Path(source).expanduser())
    if isinstance(source, Image.Image):
        return _loaded(source)
    if isinstance(source, Tensor):
        values = source.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
        _check_shape(array, 0, "[3, H, W]", name)
        return _from_array(array.transpose(1, 2, 0), name)
    if isinstance(source, np.ndarray):
        _check_shape(source, 2, "[H, W, 3]", name)
        return _from_array(source, name)
    raise ConfigError(f"{name} is a {type(source).__name__}; give a path, a PIL image, an array or a tensor")


def _loaded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except OSError as error:
        raise RejectedRow("truncated") from error
    return to_rgb(image)


def _check_shape(array: NDArray[Any], channels: int, expected: str, name: str) -> None:
    if array.ndim != 3 or array.shape[channels] != 3 or not array.size:
        raise ConfigError(f"{name} has the shape {list(array.shape)}; expected {expected}, in RGB")


def _from_array(pixels_HWC: NDArray[Any], name: str) -> Image.Image:
    if np.issubdtype(pixels_HWC.dtype, np.floating):
        if not (pixels_HWC.min() >= 0 and pixels_HWC.max() <= 1):  # also False for NaN
            raise ConfigError(
                f"{name} is floating-point with values outside 0 to 1; give 0 to 1, or uint8 from 0 to 255. "
                "Do not normalize them: the model does that"
            )
        pixels_HWC = np.rint(pixels_HWC * 255).astype(np.uint8)
    if pixels_HWC.dtype != np.uint8:
        raise ConfigError(f"{name} has the type {pixels_HWC.dtype}; give uint8, or floating-point from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(pixels_HWC))
