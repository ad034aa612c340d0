"""CGI and CFF against the formulas written out in NumPy, and the composed prompt against CLIP's own 77 tokens."""

import math

import numpy as np
import pytest
import torch

from reid.config.backbone import BackboneConfig
from reid.config.train import LossConfig, ScgiConfig, TrainConfig
from reid.models.backbone import build_backbone
from reid.models.prompts import ComposedPrompt, fixed_prompt
from reid.models.scgi import Attention, CaptionGuidedInversion, ContextualFeatureFusion
from reid.tasks.base import Batch
from reid.tasks.scgi import ScgiTask
from tests.helpers.scgi_formulas import array, attend, cross, feed, mlp3, norm, stirred

TINY = BackboneConfig(weights="random")
ALL_TERMS = {"id", "tri", "con", "id_fused", "tri_fused"}


def _randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_equals_torchs_own_with_the_same_weights():
    ours = stirred(Attention(128), 0)
    theirs = torch.nn.MultiheadAttention(128, 2, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]).data
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]).data
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, context = _randn(1, 3, 5, 128), _randn(2, 3, 7, 128)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "depth"), [(1, 1), (2, 1), (4, 3)])
def test_inversion_equals_the_formula(count, depth):
    module = stirred(CaptionGuidedInversion(128, 96, inversion_tokens=count, depth=depth), 3)
    tokens, caption = _randn(4, 3, 6, 128), _randn(5, 3, 128)
    word, refined = module(tokens, caption)
    assert word.shape == (3, 96)
    for image in range(3):
        v = tokens[image].double().numpy() * caption[image].double().numpy()
        np.testing.assert_allclose(refined[image].detach().numpy(), v, rtol=1e-5)
        found = array(module, "queries_KD")
        for block in range(depth):
            found = cross(module, f"blocks.{block}.", found, v[1:], heads=2)
        expected = mlp3(module, "to_global.", v[0]) + mlp3(module, "to_local.", found.mean(0))
        np.testing.assert_allclose(word[image].detach().numpy(), expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


def _silent(module):
    """The module with all weights zero; its norms and attentions output zeros."""
    for parameter in module.parameters():
        parameter.data.zero_()
    return module


def _pass_on(*layers):
    """Make linear layers and norms the identity."""
    for layer in layers:
        layer.weight.data = torch.ones_like(layer.weight) if layer.weight.ndim == 1 else torch.eye(len(layer.weight))


def test_inversion_by_hand():
    # Width 2 (one head). Attention and feed-forwards with zero output do not change the tokens; both MLPs are the
    # identity for positive numbers: S* = v~_cls + mean of the tokens.
    module = _silent(CaptionGuidedInversion(2, 2, inversion_tokens=2, depth=1))
    for mlp in (module.to_global, module.to_local):
        _pass_on(mlp[0], mlp[2], mlp[4])
    module.queries_KD.data = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    tokens = torch.tensor([[[2.0, 5.0], [7.0, 7.0], [9.0, 9.0]]])
    word, refined = module(tokens, torch.tensor([[10.0, 0.5]]))
    assert refined.tolist() == [[[20.0, 2.5], [70.0, 3.5], [90.0, 4.5]]]
    assert word.tolist() == [[20.0 + 2.0, 2.5 + 4.0]]


def test_inversion_finds_the_patch_its_query_points_at():
    # A query that matches one patch far better than the others takes that patch's value: Q' = Q + LN(patch).
    module = _silent(CaptionGuidedInversion(2, 2, inversion_tokens=1, depth=1))
    block, attention = module.blocks[0], module.blocks[0].attention
    _pass_on(block.norm_query, block.norm_context, attention.key, attention.value, attention.out)
    _pass_on(module.to_local[0], module.to_local[2], module.to_local[4])
    attention.query.weight.data = 100 * torch.eye(2)
    module.queries_KD.data = torch.tensor([[5.0, 1.0]])
    tokens = torch.tensor([[[0.0, 0.0], [4.0, 1.0], [1.0, 8.0]]])  # class, then patches whose norms are +- (1, -1)
    word, _ = module(tokens, torch.ones(1, 2))
    torch.testing.assert_close(word, torch.tensor([[5.0 + 1.0, 0.0]]), atol=1e-4, rtol=0)


def _three_to_one(block):
    """Give a CrossBlock of width 4 an attention whose logits are ln 3 for a token like the query and 0 for one across.

    Both tokens have mean 0 and deviation 1, so the norms hand them on; a logit is (ln 3 / 2) * (q . k) / sqrt(4).
    """
    attention = block.attention
    _pass_on(block.norm_query, block.norm_context, attention.key, attention.value, attention.out)
    attention.query.weight.data = 0.5 * math.log(3) * torch.eye(4)


ALIKE, ACROSS = [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]


def test_inversion_weighs_the_refined_patches_by_hand():
    # v~ = token * caption: (2, 0, 0, 0) is the class, ALIKE and ACROSS are the patches. The query ALIKE takes 3/4 of
    # the first and 1/4 of the second: (1, 0.5, -0.5, -1); Q' = (2, 1.5, -1.5, -2); the MLP's ReLU leaves (2, 1.5).
    module = _silent(CaptionGuidedInversion(4, 4, inversion_tokens=1, depth=1))
    _three_to_one(module.blocks[0])
    for mlp in (module.to_global, module.to_local):
        _pass_on(mlp[0], mlp[2], mlp[4])
    module.queries_KD.data = torch.tensor([ALIKE])
    tokens = torch.tensor([[[4.0, 0.0, 0.0, 0.0], [2.0, 0.5, -1.0, -4.0], [2.0, -0.5, 1.0, -4.0]]])
    word, refined = module(tokens, torch.tensor([[0.5, 2.0, 1.0, 0.25]]))
    assert refined.tolist() == [[[2.0, 0.0, 0.0, 0.0], ALIKE, ACROSS]]
    torch.testing.assert_close(word, torch.tensor([[4.0, 1.5, 0.0, 0.0]]), atol=1e-4, rtol=0)


def test_fusion_gathers_the_image_by_hand():
    # The end token ALIKE takes 3/4 of the image token like it and 1/4 of the one across: as above it becomes
    # (2, 1.5, -1.5, -2), whose variance is (4 + 2.25) / 2 = 3.125. The first prompt token does not matter at depth 0.
    module = _silent(ContextualFeatureFusion(4, depth=0))
    _three_to_one(module.cross)
    module.norm.weight.data.fill_(1.0)
    prompt, image = torch.tensor([[[9.0, 0.0, 7.0, 1.0], ALIKE]]), torch.tensor([[ALIKE, ACROSS]])
    expected = torch.tensor([[2.0, 1.5, -1.5, -2.0]]) / math.sqrt(3.125)
    torch.testing.assert_close(module(prompt, image), expected, atol=1e-4, rtol=0)


def test_fusion_mixes_the_prompt_by_hand():
    # Cross-attention outputs zeros. Self-attention with queries of zeros takes the mean of the tokens, (1, 0, 0, -1):
    # the end token becomes (2, 1, -1, -2). The feed-forward adds 0.3 * GELU(10) = 3 to its last channel: (2, 1, -1, 1),
    # mean 0.75, deviations (1.25, 0.25, -1.75, 0.25), variance 4.75 / 4.
    module = _silent(ContextualFeatureFusion(4, depth=1))
    block = module.blocks[0]
    _pass_on(block.norm_attention, block.attention.key, block.attention.value, block.attention.out)
    block.feed[0].bias.data[5] = 10.0
    block.feed[2].weight.data[3, 5] = 0.3
    module.norm.weight.data.fill_(2.0)
    module.norm.bias.data.fill_(100.0)
    got = module(torch.tensor([[ACROSS, ALIKE]]), _randn(10, 1, 3, 4))
    expected = 100 + 2 * torch.tensor([[1.25, 0.25, -1.75, 0.25]]) / math.sqrt(4.75 / 4)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("depth", [0, 2])
def test_fusion_equals_the_formula(depth):
    module = stirred(ContextualFeatureFusion(128, depth=depth), 6)
    prompt, tokens = _randn(7, 3, 5, 128), _randn(8, 3, 9, 128)
    got = module(prompt, tokens).detach().numpy()
    for image in range(3):
        x = cross(module, "cross.", prompt[image].double().numpy(), tokens[image].double().numpy(), heads=2)
        for block in range(depth):
            normed = norm(module, f"blocks.{block}.norm_attention", x)
            x = x + attend(module, f"blocks.{block}.attention.", normed, normed, heads=2)
            x = x + feed(module, f"blocks.{block}.feed.", norm(module, f"blocks.{block}.norm_feed", x))
        np.testing.assert_allclose(got[image], norm(module, "norm", x[-1]), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def backbone():
    return build_backbone(TINY, seed=1).eval()


def test_composed_prompt_equals_the_77_token_result(backbone):
    words = _randn(9, 4, 1, backbone.text_width)
    with torch.no_grad():
        short = ComposedPrompt(backbone, "person")(backbone, words)
        ids, ends = backbone.token_ids(["A photo of a man person"])
        marker = backbone.token_ids(["man"])[0][0, 1]
        full = torch.zeros(1, 77, dtype=torch.long)
        full[0, : ids.shape[1]] = ids
        embedded = backbone.clip.token_embedding(full).repeat(4, 1, 1)
        place = (full[0] == marker).nonzero().item()
        embedded[:, place] = words[:, 0]
        x = embedded + backbone.clip.positional_embedding
        x = backbone.clip.ln_final(backbone.clip.transformer(x, attn_mask=backbone.clip.attn_mask))
        long = x @ backbone.clip.text_projection
    assert short.shape[1] == ids.shape[1] == ends.item() + 1 < 12
    torch.testing.assert_close(short, long[:, : short.shape[1]], rtol=1e-4, atol=1e-5)


def test_the_fixed_prompt_ends_in_clips_text_feature(backbone):
    ids, _ = backbone.token_ids(["A photo of a person"])
    with torch.no_grad():
        expected = backbone.clip.encode_text(torch.nn.functional.pad(ids, (0, 77 - ids.shape[1])))
    torch.testing.assert_close(fixed_prompt(backbone, "A photo of a person")[:, -1], expected, rtol=1e-4, atol=1e-5)


def _task(**scgi):
    config = TrainConfig(backbone=TINY, scgi=ScgiConfig(**scgi), loss=LossConfig())
    return ScgiTask(build_backbone(TINY, seed=1), config, identities=4)


def _batch(seed=0, size=8):
    return Batch(
        images_BCHW=_randn(seed, size, 3, 128, 64),
        labels_B=torch.arange(size) // 2,
        items_B=torch.arange(size),
        captions_BD=_randn(seed + 1, size, 128),
    )


@pytest.mark.parametrize(
    ("scgi", "terms", "modes"),
    [
        ({}, ALL_TERMS, ["image", "fused"]),
        ({"fusion_tokens": "refined"}, ALL_TERMS, ["image", "fused"]),
        ({"cff": False}, {"id", "tri", "con"}, ["image"]),
        ({"cgi": False}, ALL_TERMS, ["image", "fused"]),
        ({"cgi": False, "cff": False}, {"id", "tri", "con"}, ["image"]),
        ({"pairing": "image", "inversion_tokens": 8, "depth": 2}, ALL_TERMS, ["image", "fused"]),
    ],
)
def test_every_variant_trains_all_of_its_parameters_and_nothing_frozen(scgi, terms, modes):
    task = _task(**scgi).train()
    got = task(_batch())
    assert set(got) == terms == set(task.weights)
    assert list(task.encoders()) == modes
    task.total(got).backward()
    idle = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    # The last block's patch outputs feed CFF only through the projection; every trainable weight has a gradient.
    assert idle == []
    frozen = {n for n, p in task.named_parameters() if not p.requires_grad}
    assert all(p.grad is None for n, p in task.named_parameters() if n in frozen)
    assert {n for n, _ in task.backbone.clip.named_parameters() if not n.startswith("visual.")} <= {
        n.removeprefix("backbone.clip.") for n in frozen
    }


def test_gradient_reaches_the_pseudo_word_through_the_frozen_text_tower():
    task = _task(cff=False).train()
    terms = task(_batch())
    terms["con"].backward()
    assert task.cgi.queries_KD.grad.abs().sum() > 0
    assert task.backbone.clip.token_embedding.weight.grad is None


def test_contrast_uses_the_pairing_and_temperature():
    batch = _batch()
    by_image, by_identity = (_task(pairing=p, cff=False).train()(batch)["con"] for p in ("image", "identity"))
    warm = _task(pairing="image", cff=False, temperature=1.0).train()(batch)["con"]
    assert not torch.isclose(by_image, by_identity)
    assert not torch.isclose(by_image, warm)


def test_fixed_prompt_ratio_replaces_that_share_of_the_prompts():
    task = _task(fixed_prompt_ratio=0.5).eval()
    prompt, tokens = _randn(1, 8, 9, 128), _randn(2, 8, 33, 128)
    with torch.no_grad():
        mixed = task._fuse(prompt, tokens)
        composed = task.cff(prompt, tokens)
        plain = task.cff(task.plain_1TD.expand(8, -1, -1), tokens)
    for row in range(8):
        torch.testing.assert_close(mixed[row], plain[row] if row % 2 else composed[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["image", "fused"])
def test_an_embedding_does_not_depend_on_its_batch(mode):
    task = _task().eval()
    encode = task.encoders()[mode]
    images = _randn(3, 9, 3, 128, 64)
    with torch.no_grad():
        alone = torch.cat([encode(images[i : i + 1]) for i in range(9)])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        shuffled = encode(images[order])[order.argsort()]
        company = encode(torch.cat([images[:4], images[:4] * 3 + 1]))[:4]
    for got, count in ((encode(images), 9), (shuffled, 9), (company, 4)):
        torch.testing.assert_close(got[:count], alone[:count], rtol=1e-4, atol=1e-5)
