"""Maps of the patches that make two images similar to a trained model.

For a vision transformer, `gradient` is gradient-weighted relevance and `rollout` is attention rollout
(`reid.relevance.propagation`), carried in fused mode from the end token through CFF into the image tower. For a ResNet,
`gradient` is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the output of stage 4, whatever the mode, and
rollout does not exist: its stages have no attention.

Shapes: B images, H heads, L image tokens (class token first), T prompt tokens, F retrieval features, R rows and
C columns of the image tower's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from data.errors import ConfigError
from data.process.environment import exact_float32
from reid.precision import unit_rows
from reid.relevance.attention import Attended, record_attention
from reid.relevance.propagation import (
    METHODS,
    Method,
    across,
    layer_weights,
    through_gradient,
    through_rollout,
)
from reid.tasks.base import Encoder, Task
from reid.tasks.scgi import ScgiTask

_STEPS: Final = {"rollout": through_rollout, "gradient": through_gradient}


class Explained(NamedTuple):
    """Explained similarities of B images.

    maps_BRC: relevance of each patch, not negative, upright (row 0 is the top of the image). Each map sums to 1, or is
    zero everywhere if no patch raises the similarity. similarity_B: cosine similarity to the target.
    """

    maps_BRC: Tensor
    similarity_B: Tensor


def methods_of(task: Task) -> tuple[Method, ...]:
    """Return the methods that can explain a task, the default first."""
    return METHODS[:1] if task.backbone.is_resnet else METHODS


@exact_float32(torch)
def similarity_maps(
    task: Task,
    images_BCHW: Tensor,
    targets_BF: Tensor,
    *,
    mode: str,
    method: Method = "gradient",
    cameras_B: Tensor | None = None,
) -> Explained:
    """Return which patches of each image make it similar to its target.

    The map of an image depends neither on the other images of the batch nor on their order. The gradient is that of
    ``f . t / |f|`` with the length of the feature f held constant: the gradient of the cosine similarity itself is zero
    where both features are equal, as for an image and its copy.

    Args:
        task: in evaluation mode, in float32.
        images_BCHW: normalized, on the device of `task`.
        targets_BF: retrieval features of the other images in the same mode, which are not differentiated.
        mode: a key of ``task.encoders()``.
        method: one of `methods_of`.
        cameras_B: camera numbers, for tasks with a camera embedding.

    Raises:
        ConfigError: the task does not have the mode, or the method cannot explain it.
    """
    check_mode(task, mode)
    chosen_method(task, method)
    grid = task.backbone.clip.visual.grid_size
    with torch.enable_grad():
        images_BCHW = images_BCHW.detach().clone().requires_grad_()  # gives even a frozen model a graph
        encoder = task.encoders()[mode]
        forward = partial(_forward, encoder, images_BCHW, cameras_B, unit_rows(targets_BF.detach()))
        row_BP, features_BF = (
            _grad_cam(task, forward) if task.backbone.is_resnet else _attention_row(task, forward, mode, method)
        )
    similarity_B = (unit_rows(features_BF.detach()) * unit_rows(targets_BF)).sum(1)
    total_B1 = row_BP.sum(1, keepdim=True)
    maps_BP = torch.where(total_B1 > 0, row_BP / total_B1.clamp(min=torch.finfo(row_BP.dtype).tiny), 0.0)
    return Explained(maps_BP.unflatten(1, tuple(grid)), similarity_B)


def check_mode(task: Task, mode: str) -> None:
    """Raise ConfigError if a task does not have `mode`."""
    modes = tuple(task.encoders())
    if mode not in modes:
        raise ConfigError(f"this model does not have the mode {mode!r}; it has {' and '.join(modes)}")


def chosen_method(task: Task, name: str | None) -> Method:
    """Return the method that `name` selects; the default for None. Raises ConfigError if it cannot explain the task."""
    known = methods_of(task)
    found = next((method for method in known if name in (method, None)), None)
    if found is None:
        why = "; the stages of a ResNet have no attention, so rollout does not exist" if name == "rollout" else ""
        raise ConfigError(f"cannot explain this model with the method {name!r}{why}: use {known[0]}")
    return found


class _Scored(NamedTuple):
    """Features [B, F], and the sum of f . t / |f| over the batch, with |f| held constant and t of unit length."""

    features_BF: Tensor
    score: Tensor


_Forward = Callable[[], _Scored]


def _forward(encoder: Encoder, images_BCHW: Tensor, cameras_B: Tensor | None, targets_BF: Tensor) -> _Scored:
    features_BF = encoder(images_BCHW, cameras_B)
    length_B1 = features_BF.detach().norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return _Scored(features_BF, (features_BF / length_B1 * targets_BF).sum())


def _attention_row(task: Task, forward: _Forward, mode: str, method: Method) -> tuple[Tensor, Tensor]:
    """Return the relevance [B, P] of the patches of a vision transformer, not normalized, and the features."""
    tower = [block.attn for block in task.backbone.clip.visual.transformer.resblocks]
    with record_attention([*tower, *(_fusion_layers(task) if mode == "fused" else ())]) as calls:
        features_BF, score = forward()
    weights = layer_weights(calls, method, score)
    step, fusion = _STEPS[method], weights[len(tower) :]
    if fusion:
        row_BL = _last_token(fusion[0])
        for weights_BTT in reversed(fusion[1:]):
            row_BL = step(row_BL, weights_BTT)
        row_BL = across(row_BL, fusion[0])
    else:
        row_BL = _class_token(weights[-1])
    for weights_BLL in reversed(weights[: len(tower)]):
        row_BL = step(row_BL, weights_BLL)
    return row_BL[:, 1:], features_BF


def _fusion_layers(task: Task) -> list[nn.Module]:
    """Return the attention layers of CFF in the order of the forward pass: cross-attention first."""
    assert isinstance(task, ScgiTask)
    return [_attention_of(block) for block in (task.cff.cross, *task.cff.blocks)]


def _attention_of(block: nn.Module) -> nn.Module:
    attention = block.attention
    assert isinstance(attention, nn.Module)
    return attention


def _class_token(weights_BLL: Tensor) -> Tensor:
    return torch.eye(weights_BLL.shape[1], device=weights_BLL.device)[:1].expand(len(weights_BLL), -1)


def _last_token(weights_BTL: Tensor) -> Tensor:
    return torch.eye(weights_BTL.shape[1], device=weights_BTL.device)[-1:].expand(len(weights_BTL), -1)


def _grad_cam(task: Task, forward: _Forward) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM [B, P] of stage 4 of a ResNet, not normalized, and the features."""
    kept: list[Tensor] = []
    handle = task.backbone.clip.visual.layer4.register_forward_hook(lambda _, __, output: kept.append(output))
    try:
        features_BF, score = forward()
    finally:
        handle.remove()
    (gradient_BVRC,) = torch.autograd.grad(score, kept)
    channels_BV11 = gradient_BVRC.mean((2, 3), keepdim=True)
    return (channels_BV11 * kept[0].detach()).sum(1).clamp(min=0).flatten(1), features_BF


class TokenMaps(NamedTuple):
    """Cross-attention of N tokens of a module to the image tokens: probabilities, averaged over the heads.

    labels: the N tokens. maps_BNRC: share of each patch. class_BN: share of the class token, 0 where a module attends
    to patches only. The shares of one token sum to 1.
    """

    labels: tuple[str, ...]
    maps_BNRC: Tensor
    class_BN: Tensor


@torch.no_grad()
@exact_float32(torch)
def fusion_maps(task: Task, images_BCHW: Tensor, cameras_B: Tensor | None = None) -> TokenMaps:
    """Return what each token of CFF's fixed prompt attends to. Raises ConfigError for a model without CFF."""
    check_mode(task, "fused")
    with record_attention(_fusion_layers(task)[:1]) as calls:
        task.encoders()["fused"](images_BCHW, cameras_B)
    shares_BTL = calls[0].probabilities().mean(1)
    return TokenMaps(prompt_labels(task), _on_grid(task, shares_BTL[:, :, 1:]), shares_BTL[:, :, 0])


@torch.no_grad()
@exact_float32(torch)
def inversion_maps(
    task: Task, images_BCHW: Tensor, captions: Sequence[str], cameras_B: Tensor | None = None
) -> TokenMaps:
    """Return what each learnable query of CGI attends to, given the caption of each image.

    Only training uses CGI. With several blocks, the maps of each block follow one another.

    Raises ConfigError for a model without CGI.
    """
    if not isinstance(task, ScgiTask) or not task.settings.cgi:
        raise ConfigError("this model does not have CGI; use a model of the method clip_scgi with train.scgi.cgi=true")
    layers = [_attention_of(block) for block in task.cgi.blocks]
    with record_attention(layers) as calls:
        tokens_BLD = task.encode_image(images_BCHW, cameras_B).tokens_BLD
        task.cgi(tokens_BLD, task.backbone.text(list(captions)))
    shares_BNP = torch.cat([call.probabilities().mean(1) for call in calls], dim=1)
    return TokenMaps(_query_labels(calls), _on_grid(task, shares_BNP), torch.zeros_like(shares_BNP[:, :, 0]))


def _on_grid(task: Task, shares_BNP: Tensor) -> Tensor:
    return shares_BNP.unflatten(2, tuple(task.backbone.clip.visual.grid_size))


def _query_labels(calls: Sequence[Attended]) -> tuple[str, ...]:
    numbers = range(1, 1 + calls[0].queries_BQD.shape[1])
    if len(calls) == 1:
        return tuple(f"query {number}" for number in numbers)
    return tuple(f"block {block}, query {number}" for block in range(1, 1 + len(calls)) for number in numbers)


def prompt_labels(task: Task) -> tuple[str, ...]:
    """Return a label for each token of the fixed prompt: the word that it belongs to, or "start" and "end"."""
    assert isinstance(task, ScgiTask)
    tokenizer = task.backbone.tokenizer
    words = [word for word in task.fixed_text.split() for _ in tokenizer.words(word)]
    return ("start", *words, "end")
