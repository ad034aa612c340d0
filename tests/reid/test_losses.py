"""The losses against plain loops in NumPy and against cases worked by hand."""

import math

import numpy as np
import pytest
import torch

from reid.tasks.losses import (
    contrastive_loss,
    cosine_image_text_loss,
    identity_loss,
    image_text_loss,
    pairwise_distances,
    prompt_loss,
    triplet_loss,
)


def _rows(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _reference_triplet(x, labels, margin):
    losses = []
    for i in range(len(x)):
        distance = [math.sqrt(max(((x[i] - x[j]) ** 2).sum(), 1e-12)) for j in range(len(x))]
        farthest = max(d for d, label in zip(distance, labels, strict=True) if label == labels[i])
        nearest = min(d for d, label in zip(distance, labels, strict=True) if label != labels[i])
        gap = farthest - nearest
        losses.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(losses) / len(losses)


def _reference_contrast(a, b, keys, temperature):
    total = 0.0
    for i in range(len(a)):
        logits = [float(a[i] @ b[j]) / temperature for j in range(len(b))]
        norm = math.log(sum(math.exp(z - max(logits)) for z in logits)) + max(logits)
        shares = [z - norm for j, z in enumerate(logits) if keys[j] == keys[i]]
        total -= sum(shares) / len(shares)
    return total / len(a)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_identity_loss_is_the_smoothed_cross_entropy(smoothing):
    scores, labels = _rows(0, 5, 7), np.array([0, 6, 3, 3, 1])
    expected = 0.0
    for row, label in zip(scores, labels, strict=True):
        log_share = row - np.log(np.exp(row).sum())
        target = np.full(7, smoothing / 7)
        target[label] += 1 - smoothing
        expected -= (target * log_share).sum() / 5
    got = identity_loss(torch.tensor(scores), torch.tensor(labels), smoothing)
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("margin", [0.3, 0.0, None])
def test_triplet_loss_equals_the_loop(margin):
    x, labels = _rows(1, 12, 6), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    got = triplet_loss(torch.tensor(x, dtype=torch.float32), torch.tensor(labels), margin)
    assert got.item() == pytest.approx(_reference_triplet(x, labels, margin), rel=1e-5)


def test_triplet_loss_by_hand():
    # On a line: a = 0 and 3, b = 1 and 5. Farthest and nearest of each point: (3, 1), (3, 2), (4, 1), (4, 2).
    x = torch.tensor([[0.0], [3.0], [1.0], [5.0]])
    labels = torch.tensor([0, 0, 1, 1])
    expected = ((3 - 1 + 0.3) + (3 - 2 + 0.3) + (4 - 1 + 0.3) + (4 - 2 + 0.3)) / 4
    assert triplet_loss(x, labels, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_loss_has_a_gradient_where_two_images_coincide():
    x = torch.ones(4, 3, requires_grad=True)
    triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.3).backward()
    assert torch.isfinite(x.grad).all()


def test_distances_equal_cdist():
    x = torch.tensor(_rows(2, 9, 4), dtype=torch.float32)
    off = ~torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(pairwise_distances(x)[off], torch.cdist(x, x)[off], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("keys", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]])
def test_contrast_equals_the_loop_in_both_directions(keys, temperature):
    image, text = _rows(3, 6, 5), _rows(4, 6, 5)
    a, b = (torch.tensor(x, dtype=torch.float32) for x in (image, text))
    there = _reference_contrast(image, text, keys, temperature)
    back = _reference_contrast(text, image, keys, temperature)
    keys = torch.tensor(keys)
    assert contrastive_loss(a, b, keys, keys, temperature).item() == pytest.approx(there, rel=1e-4)
    assert image_text_loss(a, b, keys, temperature).item() == pytest.approx(there + back, rel=1e-4)


def test_contrast_of_equal_logits_is_the_logarithm_of_the_batch():
    x = torch.ones(8, 4)
    assert contrastive_loss(x, x, torch.arange(8), torch.arange(8), 0.5).item() == pytest.approx(math.log(8), rel=1e-6)


def test_losses_are_float32_under_mixed_precision():
    x = torch.tensor(_rows(5, 8, 16), dtype=torch.float32)
    labels = torch.arange(8) // 2
    with torch.autocast("cpu", torch.bfloat16):
        got = [triplet_loss(x.bfloat16(), labels, 0.3), identity_loss(x.bfloat16(), labels, 0.1)]
        got.append(image_text_loss(x.bfloat16(), x.bfloat16(), labels, 1.0))
    assert all(value.dtype == torch.float32 for value in got)


def test_distances_between_equal_rows_are_the_root_of_the_clamp():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.001]])
    expected = torch.tensor([[1e-6, 1e-6, 1e-3], [1e-6, 1e-6, 1e-3], [1e-3, 1e-3, 1e-6]])
    torch.testing.assert_close(pairwise_distances(x)[:2, :2], expected[:2, :2], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(pairwise_distances(x), expected, rtol=0.2, atol=0.0)


def test_distances_have_a_gradient_of_zero_between_equal_rows():
    x = torch.tensor([[3.0, 4.0], [3.0, 4.0]], requires_grad=True)
    pairwise_distances(x)[0, 1].backward()
    assert x.grad.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_contrast_between_different_keys_on_either_side():
    """Anchors of identities 0, 1, 1 against targets of 1, 1, 0: using one side's keys or another order fails."""
    a, b = _rows(6, 3, 4), _rows(7, 3, 4)
    anchor_keys, target_keys = [0, 1, 1], [1, 1, 0]
    logits = a @ b.T / 0.5
    share = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    positives = [[j for j in range(3) if target_keys[j] == anchor_keys[i]] for i in range(3)]
    expected = -np.mean([share[i, positives[i]].mean() for i in range(3)])
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (a, b)]
    got = contrastive_loss(*tensors, torch.tensor(anchor_keys), torch.tensor(target_keys), 0.5)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_the_cosine_loss_is_that_of_unit_rows():
    a, b = 7 * _rows(8, 4, 3), 0.2 * _rows(9, 4, 3)
    keys = torch.tensor([0, 1, 1, 2])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    expected = _reference_contrast(*unit, keys.tolist(), 0.1) + _reference_contrast(*unit[::-1], keys.tolist(), 0.1)
    got = cosine_image_text_loss(*(torch.tensor(x, dtype=torch.float32) for x in (a, b)), keys, 0.1)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_the_prompt_loss_is_the_cross_entropy_of_the_products():
    image, texts, labels = _rows(10, 3, 4), _rows(11, 5, 4), torch.tensor([4, 0, 2])
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (image, texts)]
    expected = identity_loss(torch.tensor(image @ texts.T, dtype=torch.float32), labels, 0.2)
    assert prompt_loss(*tensors, labels, 0.2).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_compared_in_float32_without_autocast_too(dtype):
    x, y = (torch.tensor(_rows(seed, 6, 4)).to(dtype) for seed in (12, 13))
    keys = torch.tensor([0, 0, 1, 1, 2, 2])
    for loss in (
        lambda a, b: identity_loss(a, keys, 0.1),
        lambda a, b: triplet_loss(a, keys, 0.3),
        lambda a, b: contrastive_loss(a, b, keys, keys, 0.07),
        lambda a, b: image_text_loss(a, b, keys, 0.07),
        lambda a, b: cosine_image_text_loss(a, b, keys, 0.07),
        lambda a, b: prompt_loss(a, b, keys, 0.1),
        lambda a, b: pairwise_distances(a).sum(),
    ):
        got = loss(x, y)
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(loss(x.float(), y.float()).item(), rel=1e-6)
