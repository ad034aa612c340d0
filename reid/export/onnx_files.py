"""ONNX files of the encoders, compared with the model by onnxruntime before anybody reads them.

Shapes: B batch, any size; H x W pixels of the model; T tokens of the longest text; D numbers of an embedding.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import ClipScgiError, ConfigError
from data.process.environment import exact_float32
from reid.models.backbone import Backbone
from reid.tasks.base import Encoder, Task

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE: Final = 1e-4
"""Largest accepted difference between a number of an embedding of length one in ONNX and in torch."""
CHECKED_BATCHES: Final = (1, 2, 7)
"""Batch sizes at which an exported encoder is compared with the model."""
FEATURES: Final = "features"
IMAGES: Final = "images"
CAMERAS: Final = "cameras"
TOKEN_IDS: Final = "token_ids"
_LIBRARIES: Final = ("onnx", "onnxruntime", "onnxscript")
_SEED: Final = 0
_EXAMPLE_BATCH: Final = 3  # the exporter keeps an axis of length one fixed
_EXAMPLE_TOKENS: Final = 9
_SHORTEST: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX file that was compared with the model.

    name: of the file. inputs: names of its inputs. width: D. difference: the largest one to torch, at any of the
    `CHECKED_BATCHES`. size: bytes.
    """

    name: str
    inputs: tuple[str, ...]
    width: int
    difference: float
    size: int


class UnitImageEncoder(nn.Module):
    """An encoder of a task with unit length: images [B, 3, H, W], and cameras [B] with SIE, -> features [B, D]."""

    def __init__(self, task: Task, encode: Encoder) -> None:
        super().__init__()
        self.task = task  # registers the parameters of `encode`
        self.encode = encode

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> Tensor:
        """Return the embeddings."""
        return F.normalize(self.encode(images_BCHW, cameras_B).float(), dim=1, eps=_SHORTEST)


class UnitTextEncoder(nn.Module):
    """CLIP's text tower with unit length: token ids [B, T] -> features [B, D] in the joint space.

    The feature is read at the end token, which has the highest id, so padding with 0 changes nothing.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the embeddings."""
        return F.normalize(self.backbone.text_from_ids(ids_BT, ids_BT.argmax(dim=1)).float(), dim=1, eps=_SHORTEST)


def require_onnx() -> None:
    """Raise ConfigError if a library of the extra `onnx` is not installed."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export to ONNX needs {', '.join(missing)}: pip install 'clip-scgi[onnx]', or choose --format open_clip"
        )


def write_image_encoder(path: Path, task: Task, encode: Encoder) -> OnnxFile:
    """Write one image encoder of `task` to `path` and compare it with the model.

    Inputs: ``images`` float32 [B, 3, H, W], normalized; with SIE also ``cameras`` int64 [B], the position of each
    camera in ``Task.camera_ids_K``. Output: ``features`` float32 [B, D] of length one.

    Raises ClipScgiError if the exported encoder differs by more than `TOLERANCE`.
    """
    names = (IMAGES, CAMERAS) if task.sie else (IMAGES,)
    encoder = UnitImageEncoder(task, encode).eval()
    samples = [_image_inputs(task, batch) for batch in CHECKED_BATCHES]
    _export(path, encoder, _image_inputs(task, _EXAMPLE_BATCH), names, [{0: "batch"} for _ in names])
    return compared(path, encoder, names, samples)


def write_text_encoder(path: Path, backbone: Backbone) -> OnnxFile:
    """Write CLIP's text tower to `path` and compare it with the model.

    Input: ``token_ids`` int64 [B, T] with start and end token, padded with 0, T up to the context. Output:
    ``features`` float32 [B, D] of length one, comparable with the mode ``joint``.

    Raises ClipScgiError if the exported encoder differs by more than `TOLERANCE`.
    """
    encoder = UnitTextEncoder(backbone).eval()
    lengths = (_EXAMPLE_TOKENS, backbone.context, 5)
    samples = [_text_inputs(backbone, batch, length) for batch, length in zip(CHECKED_BATCHES, lengths, strict=True)]
    free = {0: "batch", 1: torch.export.Dim("tokens", min=2, max=backbone.context)}
    _export(path, encoder, _text_inputs(backbone, _EXAMPLE_BATCH, _EXAMPLE_TOKENS), (TOKEN_IDS,), [free])
    return compared(path, encoder, (TOKEN_IDS,), samples)


@exact_float32(torch)
def compared(
    path: Path,
    encoder: nn.Module,
    names: Sequence[str],
    samples: Sequence[tuple[Tensor, ...]],
    tolerance: float = TOLERANCE,
) -> OnnxFile:
    """Return the file at `path` after comparing it with `encoder` on each of `samples`, the inputs called `names`.

    Raises ClipScgiError if a feature differs by more than `tolerance`.
    """
    session = open_session(path)
    largest, width = 0.0, 0
    for inputs in samples:
        with torch.inference_mode():
            expected_BD: NDArray[np.float32] = encoder(*inputs).numpy()
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        (found_BD,) = session.run([FEATURES], given)
        largest = max(largest, float(np.abs(found_BD - expected_BD).max()))
        width = expected_BD.shape[1]
    if not largest <= tolerance:  # also True for NaN
        raise ClipScgiError(
            f"{path.name} differs from the model by {largest:.1e} (allowed: {tolerance:.0e}), so nothing was written; "
            "export with the versions in requirements.lock"
        )
    return OnnxFile(name=path.name, inputs=tuple(names), width=width, difference=largest, size=path.stat().st_size)


def open_session(path: Path) -> InferenceSession:
    """Return an onnxruntime session of the file at `path` on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _image_inputs(task: Task, batch: int) -> tuple[Tensor, ...]:
    """Return noise images of the range of normalized pixels and, with SIE, cameras."""
    shape, generator = task.preprocess, torch.Generator().manual_seed(_SEED + batch)
    pixels_BCHW = torch.rand(batch, 3, shape.height, shape.width, generator=generator)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (shape.mean, shape.std))
    images_BCHW = (pixels_BCHW - mean) / std
    if not task.sie:
        return (images_BCHW,)
    return images_BCHW, torch.randint(len(task.camera_ids_K), (batch,), generator=generator)


def _text_inputs(backbone: Backbone, batch: int, length: int) -> tuple[Tensor, ...]:
    """Return token ids of random words, each row with its end token at another place if the length allows it."""
    generator, tokenizer = torch.Generator().manual_seed(_SEED + batch), backbone.tokenizer
    ids_BT = torch.randint(1, min(tokenizer.start, tokenizer.end), (batch, length), generator=generator)
    ids_BT[:, 0] = tokenizer.start
    for row in range(batch):
        end = max(1, length - 1 - row)
        ids_BT[row, end], ids_BT[row, end + 1 :] = tokenizer.end, 0
    return (ids_BT,)


def _export(
    path: Path, encoder: nn.Module, example: tuple[Tensor, ...], names: Sequence[str], free: list[dict[int, Any]]
) -> None:
    # Not `exact_float32`: the exporter cannot trace while its switches are set.
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _quiet():
        program = torch.onnx.export(
            encoder,
            example,
            dynamo=True,
            dynamic_shapes=tuple(free),
            input_names=list(names),
            output_names=[FEATURES],
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which logs and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
