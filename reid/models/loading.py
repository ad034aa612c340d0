"""Load a CLIP file into a model. Every parameter comes from the file, or one error lists what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import WeightsError, counted
from data.weights import StoredTensor, differences, few, nonfinite
from reid.clip_files.grids import Grid, grid_of
from reid.clip_files.names import POOL_POSITIONS, POSITIONS, TRANSPOSED, Layout, architecture, layout_of
from reid.models.file_configs import FileConfig

_COUNTER: Final = "num_batches_tracked"
"""Buffer of a batch norm that changes no result; older files lack it."""

_FORMATS: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
"""Format of a tensor by its name in safetensors."""


class ClipShape(TypedDict):
    """The architecture of a CLIP: the arguments of open_clip's `CLIP`."""

    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: NotRequired[bool]


def load_clip(clip: nn.Module, state: Mapping[str, Tensor], source: str, source_grid: Grid | None = None) -> None:
    """Load `state` into `clip` in float32, the position embeddings resized from `source_grid` to the model's grid.

    Args:
        clip: open_clip's CLIP, as `reid.models.backbone.build_clip` builds it.
        state: tensors named as in open_clip, Hugging Face or a train artifact, in any floating-point format.
        source: the name of the file in errors.
        source_grid: rows and columns of the positions in `state`; None derives them from their number.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape, not floating point, not finite, or matrices
            of zeros.
    """
    layout = layout_of(state.keys(), source)
    wanted = _check_fit(clip, state, layout, source)
    key = _positions(wanted)
    used = {stored for name in wanted for stored in layout.sources(name)}
    check_finite({name: value for name, value in state.items() if name in used}, source)
    _check_nonzero({name: value for name, value in state.items() if name in used}, source)
    loaded = {name: _tensor(name, state, layout) for name in wanted if _is_stored(name, state, layout)}
    loaded = {name: value.reshape(wanted[name]) if value.numel() == 1 else value for name, value in loaded.items()}
    loaded[key] = resize_positions(loaded[key], clip.visual.grid_size, source_grid)  # type: ignore[union-attr, arg-type]
    clip.load_state_dict(loaded, strict=False)  # missing tensors were checked above


def check_stored(clip: nn.Module, stored: Mapping[str, StoredTensor], source: str) -> None:
    """Raise WeightsError if tensors in a file, read from its header, do not fit `clip` or are not finite.

    clip: open_clip's CLIP, which may lie on the meta device. source: the name of the file in errors.
    """
    state = {name: _without_memory(tensor) for name, tensor in stored.items()}
    layout = layout_of(state.keys(), source)
    wanted = _check_fit(clip, state, layout, source)
    used = {place for name in wanted for place in layout.sources(name)}
    _refuse_nonfinite(nonfinite({name: tensor for name, tensor in stored.items() if name in used}), source)


def _without_memory(tensor: StoredTensor) -> Tensor:
    """Return a tensor of the meta device with the shape and the format of a stored one."""
    return torch.empty(tensor.shape, dtype=_FORMATS.get(tensor.dtype, torch.uint8), device="meta")


def _check_fit(clip: nn.Module, state: Mapping[str, Tensor], layout: Layout, source: str) -> dict[str, tuple[int, ...]]:
    """Raise WeightsError if `state` does not fit `clip`; return the shapes of its tensors."""
    wanted = {name: tuple(value.shape) for name, value in clip.state_dict().items()}
    problems = list(_problems(wanted, state, layout, _positions(wanted)))
    if problems:
        raise WeightsError(f"{source} does not fit the backbone: {'; '.join(problems)}")
    return wanted


def _positions(wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Return the name of the position embeddings, which are resized."""
    return POSITIONS if POSITIONS in wanted else POOL_POSITIONS


def _problems(
    wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], layout: Layout, positions: str
) -> Iterator[str]:
    """Yield one line per kind of difference between the model and the file, with the names of the file."""
    expected = {
        name: shape for ours, theirs in wanted.items() for name, shape in layout.source_shapes(ours, theirs).items()
    }
    found = {name: tuple(state[name].shape) for name in expected.keys() & state.keys()}
    free = layout.sources(positions)[0]  # the number of positions may differ, because they are resized
    shapes = {
        name: (shape, expected[name])
        for name, shape in found.items()
        if not (_alike(shape, expected[name]) or (name == free and shape[1:] == expected[name][1:]))
    }
    missing = {name for name in expected.keys() - state.keys() if not name.endswith(_COUNTER)}
    unexpected = layout.without_harmless(state.keys()) - expected.keys()
    plain = Layout(naming="open_clip", prefix="")
    have, want = architecture({n: t.shape for n, t in state.items()}, layout), architecture(wanted, plain)
    if have.differences(want):
        yield f"it contains {have}, the backbone is {want}"
    yield from differences(missing, unexpected, shapes)
    integers = {name for name in found if not _is_readable(name, state[name])}
    if integers:
        formats = sorted({str(state[name].dtype).removeprefix("torch.") for name in integers})
        yield (
            f"{len(integers)} {'tensor is' if len(integers) == 1 else 'tensors are'} stored as {', '.join(formats)}: "
            f"{few(integers)} (quantized weights cannot be trained; use float32, float16 or bfloat16)"
        )


def _alike(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return True if two shapes are equal; a scalar may be stored with or without an axis."""
    return found == wanted or (set(found) <= {1} and set(wanted) <= {1})


def _is_readable(name: str, value: Tensor) -> bool:
    return name.endswith(_COUNTER) or (value.is_floating_point() and value.element_size() > 1)


def _is_stored(name: str, state: Mapping[str, Tensor], layout: Layout) -> bool:
    return layout.sources(name)[0] in state


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError that names the tensors of `state` with NaN or infinity (in float32)."""
    _refuse_nonfinite([name for name, value in state.items() if not torch.isfinite(value.float()).all()], source)


def _refuse_nonfinite(bad: Sequence[str], source: str) -> None:
    if bad:
        raise WeightsError(
            f"{source} contains NaN or infinity in {counted(len(bad), 'tensor')}: {few(bad)}; "
            "the file is damaged or its training diverged: use another one"
        )


def _check_nonzero(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError that names the matrices of `state` with zeros only, as after an interrupted download."""
    zero = [name for name, value in state.items() if value.dim() > 1 and value.numel() > 1 and not value.any()]
    if zero:
        raise WeightsError(
            f"{source} contains only zeros in {counted(len(zero), 'tensor')}: "
            f"{few(zero)}. The file is probably of an interrupted download: download or copy it again"
        )


def _tensor(name: str, state: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return CLIP's tensor `name`, assembled from the tensors of the file."""
    parts = [state[stored] for stored in layout.sources(name)]
    if name.endswith(_COUNTER):
        return parts[0]
    value = torch.cat([part.float() for part in parts]) if len(parts) > 1 else parts[0].float()
    return value.T if layout.naming == "hugging_face" and name in TRANSPOSED else value


def refuse_other_model(beside: FileConfig, shape: ClipShape) -> None:
    """Raise WeightsError if the config beside a file describes another model than `shape`, defaults included.

    Tensors do not show the number of heads, the pooling and the epsilon of norms; a wrong value would silently change
    every feature.
    """
    towers = {"vision_cfg": shape["vision_cfg"], "text_cfg": shape["text_cfg"]}
    other = [
        f"{part}.{name} is {value!r} instead of {tower.get(name)!r}"
        for part, tower in towers.items()
        for name, value in (beside.model.get(part) or {}).items()
        if name != "image_size" and value != tower.get(name)
    ]
    if beside.model.get("embed_dim", shape["embed_dim"]) != shape["embed_dim"]:
        other.append(f"embed_dim is {beside.model['embed_dim']} instead of {shape['embed_dim']}")
    if other:
        raise WeightsError(
            f"{beside.path} describes another model than train.backbone.name: {few(other)}. If it belongs to another "
            "file, move the weights to a folder of their own; models of these settings are not supported"
        )


def resize_positions(positions_LV: Tensor, grid: Grid, source_grid: Grid | None = None) -> Tensor:
    """Resize position embeddings (class position first) from `source_grid` to `grid` rows x columns.

    Bilinear without antialiasing, as in CLIP-ReID (clip/model.py, resize_pos_embed). Without `source_grid`, positions
    whose number fits `grid` are not resized. Raises WeightsError if the number fits several grids.
    """
    rows, columns = grid_of(len(positions_LV) - 1, (grid[0], grid[1]), given=source_grid)
    if (rows, columns) == tuple(grid):
        return positions_LV
    grid_1VHW = positions_LV[1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1VHW, size=tuple(grid), mode="bilinear")
    return torch.cat([positions_LV[:1], resized.permute(0, 2, 3, 1).flatten(0, 2)])
