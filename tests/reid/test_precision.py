"""Losses, heads and logits under bfloat16 autocast: values and gradients against formulas in float64.

Features have norm 50 and a large mean, as those of a trained CLIP have: in bfloat16 their distances are far off.
"""

from types import SimpleNamespace

import pytest
import torch

from reid.config.backbone import BackboneConfig
from reid.config.train import ScgiConfig, TrainConfig
from reid.models.backbone import ImageFeatures
from reid.precision import full_precision, unit_rows
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.tasks.losses import contrastive_loss, identity_loss, image_text_loss, pairwise_distances, triplet_loss
from reid.tasks.scgi import _Composed
from reid.training.distributed import gather_batch
from reid.training.prompt_learning import prompt_terms

IDENTITIES, EACH = 4, 4
LABELS = torch.arange(IDENTITIES).repeat_interleave(EACH)
KEYS = LABELS[:, None] == LABELS[None]
SMOOTHING, MARGIN = 0.1, 0.3
NORM = 50


def _randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _features(seed, width=128, noise=0.4):
    """Features [16, width] of norm 50 around one center per identity and a common one, as a leaf of the graph."""
    rows = _randn(seed, IDENTITIES, width)[LABELS] + noise * _randn(seed + 100, len(LABELS), width)
    rows = rows + 4 * noise * _randn(seed + 200, width)
    return (NORM * torch.nn.functional.normalize(rows, dim=1)).requires_grad_()


# The formulas in float64 ---------------------------------------------------------------------------------


def _entropy64(scores, labels=LABELS):
    log_share = torch.log_softmax(scores, 1)
    return -((1 - SMOOTHING) * log_share[range(len(labels)), labels] + SMOOTHING * log_share.mean(1)).mean()


def _triplet64(x, margin=MARGIN):
    distances = ((x[:, None] - x[None]) ** 2).sum(2).clamp(min=1e-12).sqrt()
    gap = torch.where(KEYS, distances, 0).amax(1) - torch.where(KEYS, torch.inf, distances).amin(1)
    return torch.nn.functional.softplus(gap).mean() if margin is None else (gap + margin).clamp(min=0).mean()


def _contrast64(anchors, targets, temperature, positive=KEYS):
    log_share = torch.log_softmax(anchors @ targets.T / temperature, 1)
    return -((log_share * positive).sum(1) / positive.sum(1)).mean()


def _both64(a, b, temperature, positive=KEYS):
    return _contrast64(a, b, temperature, positive) + _contrast64(b, a, temperature, positive)


def _unit64(x):
    return x / x.norm(dim=1, keepdim=True)


def _head64(x, head):
    normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + head.neck.eps).sqrt() * head.neck.weight.double()
    return normed @ head.classifier.weight.double().T


def _same(ours, reference, leaves):
    """Compare `ours(*leaves)` under autocast with `reference` of the same numbers in float64: value and gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(*leaves)
    assert got.dtype == torch.float32
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = reference(*exact)
    assert wanted.item() > 1e-3, "a loss of zero shows nothing"
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    pairs = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, exact), strict=True)
    for gradient, wanted_gradient in pairs:
        a, b = gradient.double().flatten(), wanted_gradient.flatten()
        assert (a @ b / (a.norm() * b.norm())).item() > 0.9999
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-4)


# The functions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [MARGIN, None])
def test_triplet_loss(margin, dtype):
    rounded = _features(0, noise=3.0).detach().to(dtype).float().requires_grad_()
    _same(lambda x: triplet_loss(x.to(dtype), LABELS, margin), lambda x: _triplet64(x, margin), [rounded])


def test_distances():
    leaf = _features(1)
    away = ~torch.eye(len(LABELS), dtype=torch.bool)
    _same(
        lambda x: pairwise_distances(x)[away].mean(), lambda x: (x[:, None] - x[None]).norm(dim=2)[away].mean(), [leaf]
    )


def test_identity_loss():
    _same(lambda x: identity_loss(x, LABELS, SMOOTHING), _entropy64, [_features(2, IDENTITIES)])


@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_contrastive_losses(temperature):
    leaves = [_features(3, noise=3.0), _features(4, noise=3.0)]
    _same(
        lambda a, b: contrastive_loss(a, b, LABELS, LABELS, temperature),
        lambda a, b: _contrast64(a, b, temperature),
        leaves,
    )
    _same(lambda a, b: image_text_loss(a, b, LABELS, temperature), lambda a, b: _both64(a, b, temperature), leaves)


def test_prompt_learning():
    leaves = [_features(5, noise=3.0), _features(6, noise=3.0)]
    for name, order in (("i2t", 1), ("t2i", -1)):
        _same(
            lambda image, text, name=name: prompt_terms(image, LABELS, None, lambda *_: text, 1.0)[name],
            lambda image, text, order=order: _contrast64(*(image, text)[::order], 1.0),
            leaves,
        )


def test_the_parts_of_all_processes_are_gathered_as_float32(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.all_gather", lambda parts, x: [part.copy_(x) for part in parts])
    summed = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: summed.append(x.dtype))
    leaf = _features(7).detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = gather_batch(leaf)
    got.sum().backward()
    assert got.dtype == torch.float32
    assert summed == [torch.float32]
    assert gather_batch(LABELS).dtype == torch.int64


def test_the_decorator_casts_in_tuples_and_keeps_other_values():
    @full_precision
    def product(features, labels, *, weights, name):
        assert labels.dtype == torch.int64
        return features.tokens_BLD[:, 0] @ weights[0].T, name

    parts = ImageFeatures(*(_randn(seed, 3, 2, 5).bfloat16() for seed in range(3)))
    with torch.autocast("cpu", torch.bfloat16):
        got, name = product(parts, LABELS, weights=(_randn(9, 4, 5),), name="kept")
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(got, parts.tokens_BLD[:, 0].float() @ _randn(9, 4, 5).T, rtol=1e-6, atol=1e-6)
    assert name == "kept"


# Length one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-149, -130, -100, -40, 0, 40, 100, 120])
def test_unit_rows_of_any_scale(exponent):
    # Powers of two keep the numbers exact: below 2 ** -126 a float32 has fewer bits, and these need three.
    whole = torch.randint(1, 8, (6, 40), generator=torch.Generator().manual_seed(0)).double()
    x = (whole * 2.0**exponent).float()
    assert torch.equal(x.double(), whole * 2.0**exponent)
    torch.testing.assert_close(unit_rows(x).double(), _unit64(whole), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        unit_rows(whole * 2.0 ** max(8 * exponent, -1074)).double(), _unit64(whole), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("scale", [2.0**-90, 1.0, 2.0**90])
def test_unit_rows_have_the_gradient_of_the_normalization_and_equal_it_to_the_bit(scale):
    leaf = (_features(30) * scale).detach().requires_grad_()
    target = _randn(31, *leaf.shape)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad((unit_rows(leaf) * target).sum(), leaf)
    plain = _features(30).detach().requires_grad_()
    normalized = torch.nn.functional.normalize(plain, dim=1)
    (wanted,) = torch.autograd.grad((normalized * target).sum(), plain)
    assert torch.equal(unit_rows(leaf), normalized)
    assert torch.equal(gradient * scale, wanted)


def test_unit_rows_of_zeros_and_of_no_rows():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    assert unit_rows(rows).tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]
    unit_rows(rows).sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert unit_rows(torch.empty(0, 3)).shape == (0, 3)


# The methods: their forward passes with the encoders' features given ---------------------------------------


def _task(method, monkeypatch, leaves):
    config = TrainConfig(
        method=method,
        backbone=BackboneConfig(weights="random"),
        scgi=ScgiConfig(pairing="image") if method == "clip_scgi" else ScgiConfig(),
    )
    texts = NORM * _unit64(_randn(9, IDENTITIES, 128)) if method == "clip_reid" else None
    task = build_task(config, identities=IDENTITIES, texts_CD=texts).train()
    for head in task.modules():
        if hasattr(head, "classifier"):  # as large as trained ones
            head.classifier.weight.data = _randn(8, *head.classifier.weight.shape) * 0.1
    seen = ImageFeatures(leaves[0], leaves[1], leaves[2][:, None])
    monkeypatch.setattr(task, "encode_image", lambda *_: seen)
    if method == "clip_scgi":
        composed = _Composed(leaves[3][:, None], seen.tokens_BLD, seen.joint_BD)
        monkeypatch.setattr(task, "_compose", lambda *_: composed)
        monkeypatch.setattr(task, "_fuse", lambda *_: leaves[4])
    return task


def _terms64(task, method, leaves):
    penultimate, last, joint, *more = leaves
    terms = {
        "id": _entropy64(_head64(last, task.heads.last)) + _entropy64(_head64(joint, task.heads.joint)),
        "tri": _triplet64(penultimate) + _triplet64(last) + _triplet64(joint),
    }
    if method == "clip_reid":
        terms["i2t"] = _entropy64(joint @ task.texts_CD.double().T)
    if method == "clip_scgi":
        text, fused = more
        own = torch.eye(len(LABELS), dtype=torch.bool)
        terms["con"] = _both64(_unit64(joint), _unit64(text), task.settings.temperature, own)
        terms["id_fused"] = _entropy64(_head64(fused, task.fused_head))
        terms["tri_fused"] = _triplet64(fused)
    return terms


@pytest.mark.parametrize("method", ["clip_baseline", "clip_reid", "clip_scgi"])
def test_every_term_of_every_method(method, monkeypatch):
    widths = SimpleNamespace(last=build_task(TrainConfig(), identities=4).backbone.last_width, joint=128)
    leaves = [_features(20 + i, width, noise=3.0) for i, width in enumerate([widths.last] * 2 + [widths.joint] * 3)]
    leaves = leaves if method == "clip_scgi" else leaves[:3]
    task = _task(method, monkeypatch, leaves)
    batch = Batch(
        images_BCHW=_randn(0, 16, 3, 8, 8),
        labels_B=LABELS,
        items_B=torch.arange(16),
        captions_BD=_randn(1, 16, 128),
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = task(batch)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = _terms64(task, method, exact)
    assert terms.keys() == wanted.keys() == task.weights.keys()
    for name, value in terms.items():
        assert value.item() == pytest.approx(wanted[name].item(), rel=1e-5), name
    gradients = torch.autograd.grad(task.total(terms), leaves)
    for gradient, other in zip(gradients, torch.autograd.grad(task.total(wanted), exact), strict=True):
        assert torch.cosine_similarity(gradient.double().flatten(), other.flatten(), dim=0).item() > 0.9999
