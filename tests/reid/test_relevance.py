"""Relevance maps: recorded attention, rollout, gradient-weighted relevance and Grad-CAM against references by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.errors import ConfigError
from reid.config.backbone import BackboneConfig
from reid.config.train import ScgiConfig
from reid.models.scgi import Attention
from reid.precision import unit_rows
from reid.relevance.attention import record_attention
from reid.relevance.grid import grid_of
from reid.relevance.maps import fusion_maps, inversion_maps, methods_of, prompt_labels, similarity_maps
from reid.relevance.propagation import across, positive_part, through_gradient, through_rollout
from reid.tasks.build import build_task
from tests.helpers.reid_worlds import small_config

RESNET = BackboneConfig(name="rn50", weights="random", height=64, width=32)
OVERLAPPING = BackboneConfig(stride=12, height=124, width=64)


def task_of(backbone: BackboneConfig | None = None, **changes):
    config = small_config(**({"backbone": backbone} if backbone else {}), **changes)
    torch.manual_seed(3)
    task = build_task(config, identities=4)
    if hasattr(task, "cff"):
        for parameter in task.cff.parameters():  # new modules attend almost evenly; make them choose
            parameter.data += 0.2 * torch.randn_like(parameter)
    return task.eval()


@pytest.fixture(scope="module")
def task():
    return task_of()


def pictures(task, count=3, seed=0):
    shape = task.preprocess
    return torch.randn(count, 3, shape.height, shape.width, generator=torch.Generator().manual_seed(seed))


def targets(task, mode, count=3, seed=1):
    with torch.no_grad():
        return task.encoders()[mode](pictures(task, count, seed))


def softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def tower_of(task):
    return [block.attn for block in task.backbone.clip.visual.transformer.resblocks]


# What is recorded


def test_probabilities_equal_a_computation_by_hand(task):
    tower = tower_of(task)
    with record_attention(tower) as calls, torch.no_grad():
        task.backbone.image(pictures(task))
    assert [call.layer for call in calls] == tower
    for call in calls:
        layer, x = call.layer, call.queries_BQD.double().numpy()
        weight, bias = layer.in_proj_weight.detach().double().numpy(), layer.in_proj_bias.detach().double().numpy()
        width, found = x.shape[-1], call.probabilities()
        c = width // layer.num_heads
        for head in range(layer.num_heads):
            q_rows, k_rows = slice(head * c, head * c + c), slice(width + head * c, width + head * c + c)
            query, key = x @ weight[q_rows].T + bias[q_rows], x @ weight[k_rows].T + bias[k_rows]
            expected = softmax(query @ key.swapaxes(1, 2) / math.sqrt(c))
            np.testing.assert_allclose(found[:, head].numpy(), expected, atol=1e-5)
        _, own = layer(call.queries_BQD, call.queries_BQD, call.queries_BQD, average_attn_weights=False)
        torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-5)


def test_probabilities_of_the_modules_equal_a_computation_by_hand():
    torch.manual_seed(0)
    layer, x, context = Attention(128), torch.randn(2, 3, 128), torch.randn(2, 5, 128)
    with record_attention([layer]) as calls, torch.no_grad():
        layer(x, context)
    for head, part in enumerate((slice(0, 64), slice(64, 128))):
        query, key = layer.query(x)[..., part], layer.key(context)[..., part]
        expected = softmax((query @ key.transpose(1, 2)).detach().double().numpy() / 8)
        np.testing.assert_allclose(calls[0].probabilities()[:, head].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_recording_changes_nothing(task, mode):
    images, encode = pictures(task), task.encoders()[mode]
    plain = encode(images).detach()
    with record_attention([*tower_of(task), task.cff.cross.attention]):
        assert torch.equal(encode(images), plain), "with gradients enabled: equal to the bit"
        with torch.inference_mode():
            torch.testing.assert_close(encode(images), plain, atol=1e-4, rtol=1e-4)
    assert not any(layer._forward_hooks for layer in tower_of(task)), "hooks are removed"


@pytest.mark.parametrize("heads", [1, 2])
def test_the_gradient_equals_autograd_through_the_probabilities(heads):
    """Write attention out with its probabilities as leaves, and compare their gradients."""
    torch.manual_seed(1)
    width, c = 8, 8 // heads
    layer = nn.MultiheadAttention(width, heads, batch_first=True)
    x, wanted = torch.randn(2, 5, width), torch.randn(2, 5, width)
    with record_attention([layer]) as calls:
        output = layer(x, x, x, need_weights=False)[0]
    (from_output,) = torch.autograd.grad((output * wanted).sum(), [calls[0].output_BQD])
    found = calls[0].gradient(from_output)
    probabilities = calls[0].probabilities().requires_grad_()
    value = F.linear(x, layer.in_proj_weight[2 * width :], layer.in_proj_bias[2 * width :])
    mixed = probabilities @ value.unflatten(-1, (heads, c)).transpose(1, 2)
    written_out = layer.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(written_out, output)
    (expected,) = torch.autograd.grad((written_out * wanted).sum(), [probabilities])
    torch.testing.assert_close(found, expected)


def test_unknown_attention_is_refused():
    layer = nn.MultiheadAttention(4, 1, batch_first=True, add_bias_kv=True)
    with record_attention([layer]) as calls:
        layer(*3 * [torch.randn(1, 2, 4)])
    with pytest.raises(TypeError, match="cannot record the attention of MultiheadAttention"):
        calls[0].probabilities()


# How it is combined


def test_a_small_case_worked_by_hand():
    # Two layers over a class token and two patches. Heads are already averaged.
    first = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.0, 0.8]]])
    second = torch.tensor([[[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    start = torch.tensor([[1.0, 0.0, 0.0]])
    # Rollout: (1, 0, 0) -> ((1, 0, 0) + (0, 1/4, 3/4)) / 2 = (1/2, 1/8, 3/8). The first layer sends that row to
    # (0.5 * 0.5 + 0.2 * 0.375, 0.5 * 0.5 + 0.125, 0.8 * 0.375) = (0.325, 0.375, 0.3); the mean of both:
    rollout = through_rollout(through_rollout(start, second), first)
    torch.testing.assert_close(rollout, torch.tensor([[0.4125, 0.25, 0.3375]]))
    # Relevance: (1, 0, 0) + (0, 1/4, 3/4) = (1, 1/4, 3/4), and the first layer adds
    # (0.5 + 0.15, 0.5 + 0.25, 0.6) = (0.65, 0.75, 0.6).
    relevance = through_gradient(through_gradient(start, second), first)
    torch.testing.assert_close(relevance, torch.tensor([[1.65, 1.0, 1.35]]))
    torch.testing.assert_close(across(start, second), torch.tensor([[0.0, 0.25, 0.75]]))
    # Head 1: gradient * probability = (2 * 0.5, -4 * 0.5) -> (1, 0); head 2: (0, 3 * 1) -> (0, 3); mean (0.5, 1.5).
    probabilities = torch.tensor([[[[0.5, 0.5]], [[0.0, 1.0]]]])
    gradients = torch.tensor([[[[2.0, -4.0]], [[9.0, 3.0]]]])
    assert positive_part(probabilities, gradients).tolist() == [[[0.5, 1.5]]]


def attention_matrices(task, mode, images):
    layers = tower_of(task)
    if mode == "fused":
        layers += [task.cff.cross.attention, *(block.attention for block in task.cff.blocks)]
    with record_attention(layers) as calls, torch.no_grad():
        task.encoders()[mode](images)
    return [call.probabilities().double().numpy() for call in calls], len(tower_of(task))


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_rollout_equals_a_loop_over_full_matrices(task, mode):
    images = pictures(task)
    matrices, tower = attention_matrices(task, mode, images)
    maps = similarity_maps(task, images, targets(task, mode), mode=mode, method="rollout").maps_BRC
    for image in range(len(images)):
        product = np.eye(matrices[0].shape[-1])
        for layer in matrices[:tower]:
            product = (layer[image].mean(0) + np.eye(len(product))) / 2 @ product
        row = product[0]
        if mode == "fused":
            prompt = np.eye(matrices[tower].shape[-2])
            for layer in matrices[tower + 1 :]:
                prompt = (layer[image].mean(0) + np.eye(len(prompt))) / 2 @ prompt
            row = (prompt @ matrices[tower][image].mean(0) @ product)[-1]
        expected = row[1:] / row[1:].sum()
        np.testing.assert_allclose(maps[image].flatten().numpy(), expected, rtol=1e-4, atol=1e-7)


class Spelled(nn.Module):
    """Multi-head attention with its probabilities written out and kept."""

    def __init__(self, layer, kept):
        super().__init__()
        self.layer, self.kept = layer, kept

    def forward(self, x, context, *_, **__):
        layer = self.layer
        if isinstance(layer, Attention):
            heads, parts = layer.heads, [layer.query(x), layer.key(context), layer.value(context)]
        else:
            heads = layer.num_heads
            weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
            parts = [
                F.linear(tokens, w, b) for tokens, w, b in zip((x, context, context), weights, biases, strict=True)
            ]
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        probabilities = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        probabilities.retain_grad()
        self.kept.append(probabilities)
        mixed = (probabilities @ value).transpose(1, 2).flatten(2)
        return layer.out(mixed) if isinstance(layer, Attention) else (layer.out_proj(mixed), None)


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_gradient_relevance_equals_a_loop_with_autograd(mode):
    task, images = task_of(), None
    images, wanted = pictures(task), targets(task, mode)
    maps, similarities = similarity_maps(task, images, wanted, mode=mode)
    kept: list[torch.Tensor] = []
    for block in task.backbone.clip.visual.transformer.resblocks:
        block.attn = Spelled(block.attn, kept)
    for block in (task.cff.cross, *task.cff.blocks):
        block.attention = Spelled(block.attention, kept)
    features = task.encoders()[mode](images)
    torch.testing.assert_close(similarities, F.cosine_similarity(features, wanted).detach())
    (features / features.detach().norm(dim=1, keepdim=True) * F.normalize(wanted)).sum().backward()
    tower = len(task.backbone.clip.visual.transformer.resblocks)
    for image in range(len(images)):
        steps = [(a.grad[image] * a[image]).clamp(min=0).mean(0).detach().double().numpy() for a in kept]
        relevance = np.eye(steps[0].shape[-1])
        for step in steps[:tower]:
            relevance = relevance + step @ relevance
        row = relevance[0]
        if mode == "fused":
            prompt = np.eye(steps[tower].shape[0])
            for step in steps[tower + 1 :]:
                prompt = prompt + step @ prompt
            row = (prompt @ steps[tower] @ relevance)[-1]
        expected = row[1:] / row[1:].sum()
        np.testing.assert_allclose(maps[image].flatten().numpy(), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_grad_cam_equals_a_loop(mode):
    task = task_of(RESNET)
    images, wanted = pictures(task), targets(task, mode)
    maps = similarity_maps(task, images, wanted, mode=mode).maps_BRC
    kept = []
    handle = task.backbone.clip.visual.layer4.register_forward_hook(lambda _, __, output: kept.append(output))
    features = task.encoders()[mode](images)
    handle.remove()
    kept[0].retain_grad()
    (unit_rows(wanted) * features / features.detach().norm(dim=1, keepdim=True)).sum().backward()
    for image in range(len(images)):
        values, gradients = kept[0][image].detach().double().numpy(), kept[0].grad[image].double().numpy()
        expected = np.zeros(values.shape[1:])
        for channel in range(len(values)):
            expected += gradients[channel].mean() * values[channel]
        expected = np.maximum(expected, 0)
        np.testing.assert_allclose(maps[image].numpy(), expected / max(expected.sum(), 1e-30), rtol=1e-3, atol=1e-6)


# What every map promises


CASES = [
    (None, "image", "gradient"),
    (None, "fused", "gradient"),
    (None, "image", "rollout"),
    (None, "fused", "rollout"),
    (OVERLAPPING, "image", "gradient"),
    (OVERLAPPING, "fused", "rollout"),
    (RESNET, "image", "gradient"),
    ("separate", "image", "gradient"),
]


@pytest.mark.parametrize(("backbone", "mode", "method"), CASES)
def test_a_map_has_the_grid_sums_to_one_and_depends_on_its_image_only(backbone, mode, method):
    task = task_of(retrieval_head="separate") if backbone == "separate" else task_of(backbone)
    images, wanted = pictures(task), targets(task, mode)
    maps = similarity_maps(task, images, wanted, mode=mode, method=method).maps_BRC
    grid = grid_of(task.backbone, task.preprocess.height, task.preprocess.width)
    assert maps.shape == (3, grid.rows, grid.columns)
    assert not maps.requires_grad
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))
    order = torch.tensor([2, 0, 1])
    shuffled = similarity_maps(task, images[order], wanted[order], mode=mode, method=method).maps_BRC
    alone = torch.cat(
        [
            similarity_maps(task, images[i : i + 1], wanted[i : i + 1], mode=mode, method=method).maps_BRC
            for i in range(3)
        ]
    )
    torch.testing.assert_close(shuffled, maps[order], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(alone, maps, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_the_grid_of_overlapping_patches():
    grid = grid_of(task_of(OVERLAPPING).backbone, 124, 64)
    assert (grid.rows, grid.columns, grid.patch, grid.stride) == (10, 5, 16, 12)
    assert grid.area(0) == (slice(0, 16), slice(0, 16))
    assert grid.area(7) == (slice(12, 28), slice(24, 40))
    assert grid.area(len(grid) - 1) == (slice(108, 124), slice(48, 64))


def test_a_spread_map_has_the_value_of_a_patch_at_its_center():
    grid = grid_of(task_of(OVERLAPPING).backbone, 124, 64)
    values = np.arange(50.0).reshape(10, 5)  # linear, so that only the border deviates by half a pixel
    spread = grid.spread(values, 124, 64)
    for position, value in enumerate(values.flatten()):
        rows, columns = grid.area(position)
        center = spread[rows.start + 7 : rows.start + 9, columns.start + 7 : columns.start + 9].mean()
        assert center == pytest.approx(value, abs=0.15)
    assert grid.spread(np.full((10, 5), 3.0), 62, 32) == pytest.approx(np.full((62, 32), 3.0))
    assert spread[0, 0] == values[0, 0]
    assert spread[-1, -1] == values[-1, -1]


def test_an_image_is_explained_against_its_copy(task):
    """The gradient of the cosine similarity would be zero here."""
    images = pictures(task, 2)
    with torch.no_grad():
        same = task.encoders()["image"](images)
    maps, similarities = similarity_maps(task, images, same, mode="image")
    torch.testing.assert_close(similarities, torch.ones(2))
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2))


def only_white_matters(task):
    """Make the class token attend to white patches, and the embedding consist of what it finds there.

    One block: patches of gray pixels have zero embeddings; a white patch has the first channel. Queries are constant
    and keys read the first channel, so that the class token attends to the white patch.
    """
    visual = task.backbone.clip.visual
    visual.transformer.resblocks = visual.transformer.resblocks[:1]
    width = visual.transformer.width
    visual.ln_pre = nn.Identity()
    visual.ln_post = nn.Identity()
    for parameter in visual.parameters():
        parameter.data.zero_()
    visual.conv1.weight.data[0] = 1 / (3 * 16 * 16)
    visual.class_embedding.data[1] = 1.0
    visual.proj.data[: visual.proj.shape[1]] = torch.eye(width)[: visual.proj.shape[1], : visual.proj.shape[1]]
    for block in visual.transformer.resblocks:
        block.ln_1 = nn.Identity()
        block.attn.in_proj_bias.data[:width] = 1.0
        block.attn.in_proj_weight.data[width : 2 * width, 0] = 20.0
        block.attn.in_proj_weight.data[2 * width : 3 * width] = torch.eye(width)
        block.attn.out_proj.weight.data = torch.eye(width)
    return task


@pytest.mark.parametrize("method", ["gradient", "rollout"])
@pytest.mark.parametrize("position", [0, 3, 9, 31])
def test_the_only_informative_patch_is_lit_where_it_lies(method, position):
    task = only_white_matters(task_of())
    grid = grid_of(task.backbone, 128, 64)
    image = torch.zeros(1, 3, 128, 64)
    rows, columns = grid.area(position)
    image[0, :, rows, columns] = 1.0
    with torch.no_grad():
        wanted = task.encoders()["image"](image)
    (found,) = similarity_maps(task, image, wanted, mode="image", method=method).maps_BRC
    assert int(found.flatten().argmax()) == position
    assert found.flatten()[position] > 0.9
    spread = grid.spread(found.numpy(), 128, 64)
    assert np.unravel_index(spread.argmax(), spread.shape)[0] in range(rows.start, rows.stop)
    assert np.unravel_index(spread.argmax(), spread.shape)[1] in range(columns.start, columns.stop)


def test_a_camera_embedding_is_used():
    config = small_config(sie=1.0)
    task = build_task(config, identities=4, cameras=[1, 2]).eval()
    task.camera_shift_KV.data.mul_(50)
    images, cameras = pictures(task, 2), torch.tensor([0, 1])
    with torch.no_grad():
        wanted = task.encoders()["image"](images.flip(0), cameras)
    found = similarity_maps(task, images, wanted, mode="image", cameras_B=cameras)
    other = similarity_maps(task, images, wanted, mode="image", cameras_B=cameras.flip(0))
    assert not torch.allclose(found.maps_BRC, other.maps_BRC)
    with pytest.raises(ValueError, match="cameras_B"):
        similarity_maps(task, images, wanted, mode="image")


# Cross-attention


def test_what_the_prompt_of_fusion_attends_to(task):
    images = pictures(task)
    labels, maps, of_class = fusion_maps(task, images)
    assert labels == ("start", *["A", "photo", "of", "a", "person"], "end") == prompt_labels(task)
    assert maps.shape == (3, len(labels), 8, 4)
    torch.testing.assert_close(maps.sum((2, 3)) + of_class, torch.ones(3, len(labels)))
    matrices, tower = attention_matrices(task, "fused", images)
    np.testing.assert_allclose(maps.flatten(2).numpy(), matrices[tower].mean(1)[:, :, 1:], atol=1e-6)
    np.testing.assert_allclose(of_class.numpy(), matrices[tower].mean(1)[:, :, 0], atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_what_the_queries_of_inversion_attend_to(depth):
    task = task_of(scgi=ScgiConfig(inversion_tokens=3, depth=depth))
    images, captions = pictures(task, 2), ["a man in a red coat", "a woman with a bag"]
    labels, maps, of_class = inversion_maps(task, images, captions)
    assert len(labels) == 3 * depth
    assert labels[0] == ("query 1" if depth == 1 else "block 1, query 1")
    assert not of_class.any()
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3 * depth))
    with torch.no_grad():
        patches = (task.backbone.image(images).tokens_BLD * task.backbone.text(captions)[:, None])[:, 1:]
        found = task.cgi.queries_KD.expand(2, -1, -1)
        for number, block in enumerate(task.cgi.blocks):
            layer, heads = block.attention, block.attention.heads
            query = layer.query(block.norm_query(found)).unflatten(-1, (heads, -1)).transpose(1, 2)
            key = layer.key(block.norm_context(patches)).unflatten(-1, (heads, -1)).transpose(1, 2)
            expected = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1).mean(1)
            own = maps.flatten(2)[:, 3 * number : 3 * number + 3]
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)
            found = block(found, patches)
    other = inversion_maps(task, images, captions[::-1]).maps_BNRC
    assert not torch.allclose(other, maps), "the caption matters"


# What cannot be explained


def test_what_does_not_exist_is_refused_by_name():
    resnet, baseline = task_of(RESNET), task_of(method="clip_baseline")
    assert methods_of(resnet) == ("gradient",)
    assert methods_of(baseline) == ("gradient", "rollout")
    images = pictures(resnet, 1)
    with pytest.raises(ConfigError, match=r"ResNet have no attention.*use gradient"):
        similarity_maps(resnet, images, images, mode="image", method="rollout")
    with pytest.raises(ConfigError, match="does not have the mode 'fused'; it has image"):
        fusion_maps(baseline, images)
    with pytest.raises(ConfigError, match="does not have CGI"):
        inversion_maps(baseline, images, ["x"])
