"""What the paper of CLIP-SCGI leaves open: each setting against its formula in float64, its gradients, its refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data.config import build_config
from data.errors import ConfigError
from reid.config.backbone import BackboneConfig
from reid.config.scgi import ScgiConfig
from reid.config.train import TrainConfig
from reid.config.trained import trained_config
from reid.evaluation.inputs import config_of
from reid.models.backbone import build_backbone
from reid.models.scgi import CaptionGuidedInversion
from reid.relevance.maps import prompt_labels
from reid.tasks.base import Batch
from reid.tasks.build import build_task
from reid.tasks.scgi import ScgiTask
from reid.training.checkpoint import load_task, save_model
from tests.helpers.scgi_formulas import array, attend, feed, mlp3, norm, stirred

TINY = BackboneConfig(weights="random")


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def task_of(seed=1, **scgi) -> ScgiTask:
    config = TrainConfig(backbone=TINY, scgi=ScgiConfig(**scgi))
    return ScgiTask(build_backbone(TINY, seed=seed), config, identities=4)


def batch_of(seed=0, size=8) -> Batch:
    return Batch(
        images_BCHW=randn(seed, size, 3, 128, 64),
        labels_B=torch.arange(size) // 2,
        items_B=torch.arange(size),
        captions_BD=randn(seed + 1, size, 128),
    )


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrast(image, text, keys, temperature=0.07):
    """Return L_i2t + L_t2i by a loop over the anchors."""
    total = 0.0
    for a, b in ((unit(image), unit(text)), (unit(text), unit(image))):
        for anchor in range(len(a)):
            logits = a[anchor] @ b.T / temperature
            shares = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            total -= shares[keys == keys[anchor]].mean() / len(a)
    return total


def arrays(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


# L_con ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["composed", "caption", "both"])
@pytest.mark.parametrize("image", ["plain", "refined"])
@pytest.mark.parametrize("inputs", ["raw", "normalized"])
def test_contrast_equals_the_formula(text, image, inputs):
    task, batch = task_of(contrast_text=text, contrast_image=image, inversion_inputs=inputs).eval(), batch_of()
    features = task.encode_image(batch.images_BCHW, None)
    words, _ = task.cgi(features.tokens_BLD, batch.captions_BD)
    composed = task.prompt(task.backbone, words[:, None])[:, -1]
    plain, captions, prompts = arrays(features.joint_BD, batch.captions_BD, composed)
    refined = unit(plain) * unit(captions) if inputs == "normalized" else plain * captions
    sides = {"composed": [prompts], "caption": [captions], "both": [prompts, captions]}[text]
    shown = {"plain": plain, "refined": refined}[image]
    expected = np.mean([contrast(shown, side, batch.labels_B.numpy()) for side in sides])
    assert task(batch)["con"].item() == pytest.approx(expected, rel=1e-5)


def gradient(task, term):
    """Return the gradient of a term with respect to CLIP's projection of image features."""
    (found,) = torch.autograd.grad(term, [task.backbone.clip.visual.proj], retain_graph=True)
    return found


def test_a_caption_as_text_side_does_not_depend_on_the_image():
    task, batch = task_of(contrast_text="caption").eval(), batch_of()
    con = task(batch)["con"]
    unused = torch.autograd.grad(con, list(task.cgi.parameters()), allow_unused=True, retain_graph=True)
    assert all(part is None for part in unused), "S* is not on the text side"
    joint = task.encode_image(batch.images_BCHW, None).joint_BD
    image, text = (torch.nn.functional.normalize(x, dim=1) for x in (joint, batch.captions_BD))
    same = (batch.labels_B[:, None] == batch.labels_B[None]).float()
    logits = image @ text.T / 0.07
    constant = -sum((same * x.log_softmax(1)).sum(1).div(2).mean() for x in (logits, logits.T))
    torch.testing.assert_close(gradient(task, con), gradient(task, constant), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("text", ["composed", "both"])
def test_a_composed_text_side_depends_on_the_image(text):
    task = task_of(contrast_text=text, cff=False).train()
    task(batch_of())["con"].backward()
    assert all(parameter.grad is not None for parameter in task.cgi.parameters())


def test_the_direction_of_the_refined_class_token_does_not_depend_on_the_scale_of_its_inputs():
    terms = [
        task_of(contrast_text="caption", contrast_image="refined", inversion_inputs=inputs).eval()(batch_of())["con"]
        for inputs in ("raw", "normalized")
    ]
    torch.testing.assert_close(*terms)


# CGI --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit_inputs", "feed_norm"), [(False, False), (False, True), (True, False), (True, True)])
def test_inversion_equals_the_formula(unit_inputs, feed_norm):
    module = stirred(
        CaptionGuidedInversion(128, 96, inversion_tokens=2, depth=2, unit_inputs=unit_inputs, feed_norm=feed_norm),
        3,
    )
    tokens, caption = randn(4, 3, 6, 128), randn(5, 3, 128)
    word, refined = module(tokens, caption)
    scale = unit if unit_inputs else np.asarray
    for image in range(3):
        v = scale(tokens[image].double().numpy()) * scale(caption[image].double().numpy())
        np.testing.assert_allclose(refined[image].detach().numpy(), v, rtol=1e-5)
        found = array(module, "queries_KD")
        for block in ("blocks.0.", "blocks.1."):
            normed = norm(module, f"{block}norm_query", found), norm(module, f"{block}norm_context", v[1:])
            found = found + attend(module, f"{block}attention.", *normed, heads=2)
            fed = norm(module, f"{block}norm_feed", found) if feed_norm else found
            found = found + feed(module, f"{block}feed.", fed)
        expected = mlp3(module, "to_global.", v[0]) + mlp3(module, "to_local.", found.mean(0))
        np.testing.assert_allclose(word[image].detach().numpy(), expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


def test_normalized_inputs_do_not_depend_on_the_length_of_features():
    module = CaptionGuidedInversion(128, 96, inversion_tokens=2, depth=1, unit_inputs=True)
    tokens, caption = randn(4, 3, 6, 128), randn(5, 3, 128)
    torch.testing.assert_close(module(tokens, caption), module(19 * tokens, 14 * caption))


# L_id, L_tri and the prompts --------------------------------------------------------------------------


def test_supervised_chooses_the_embeddings_of_the_identity_and_triplet_losses():
    both = task_of().eval()(batch_of())
    fused = task_of(supervised="fused").eval()
    image = task_of(supervised="image", cff=False).eval()
    assert set(fused(batch_of())) == {"con", "id_fused", "tri_fused"} == set(fused.weights)
    assert set(image(batch_of())) == {"con", "id", "tri"} == set(image.weights)
    assert not any(name.startswith("heads.") for name in fused.state_dict())
    assert list(fused.encoders()) == ["image", "fused"]
    assert set(both) == {"con", "id", "tri", "id_fused", "tri_fused"}
    assert image(batch_of())["tri"] == both["tri"]


@pytest.mark.parametrize(
    ("end", "composed", "fixed"),
    [
        ("person", "person", "A photo of a person"),
        ("person.", "person.", "A photo of a person."),
        ("mixed", "person.", "A photo of a person"),
    ],
)
def test_both_prompts_end_as_the_setting_says(end, composed, fixed):
    task = task_of(prompt_end=end).eval()
    words = task.backbone.tokenizer.words
    ids = torch.tensor([[*words(composed), task.backbone.tokenizer.end]])
    assert torch.equal(task.prompt.suffix_1TW, task.backbone.embed_ids(ids))
    whole, _ = task.backbone.token_ids([fixed])
    with torch.no_grad():
        assert torch.equal(task.plain_1TD, task.backbone.text_tokens(task.backbone.embed_ids(whole)))
    assert len(prompt_labels(task)) == task.plain_1TD.shape[1]


VARIANTS = [
    {"contrast_text": "caption"},
    {"contrast_text": "both", "contrast_image": "refined"},
    {"contrast_text": "both", "cff": False},
    {"inversion_inputs": "normalized", "inversion_feed_norm": True, "fusion_tokens": "refined"},
    {"supervised": "fused"},
    {"supervised": "image", "cff": False},
    {"prompt_end": "person."},
    {"prompt_end": "mixed", "fixed_prompt_ratio": 0.5},
]


@pytest.mark.parametrize("scgi", VARIANTS)
def test_every_variant_trains_all_of_its_parameters(scgi):
    task = task_of(**scgi).train()
    terms = task(batch_of())
    assert set(terms) == set(task.weights)
    task.total(terms).backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("scgi", VARIANTS)
def test_no_variant_mixes_the_images_of_a_batch(scgi):
    task = task_of(**scgi).eval()
    images, order = randn(3, 5, 3, 128, 64), torch.tensor([3, 0, 4, 2, 1])
    for encode in [*task.encoders().values(), task.encode_joint]:
        with torch.no_grad():
            alone = torch.cat([encode(images[i : i + 1]) for i in range(5)])
            torch.testing.assert_close(encode(images[order])[order.argsort()], alone, rtol=1e-4, atol=1e-5)


# Models of earlier versions ---------------------------------------------------------------------------

NEWER = ("inversion_inputs", "inversion_feed_norm", "supervised", "contrast_text", "contrast_image", "prompt_end")


def test_a_model_of_before_the_setting_loads_and_gives_the_same_features(tmp_path):
    config = TrainConfig(scgi=ScgiConfig(prompt_end="mixed"))
    task = build_task(config, identities=3).eval()
    save_model(tmp_path / "model.safetensors", task)
    written = config.model_dump(mode="json")
    for name in NEWER:
        del written["scgi"][name]
    for name in ("retrieval_head", "blend"):
        del written[name]
    for name in ("distill_weight", "distill_temperature"):
        del written["loss"][name]
    (tmp_path / "config.json").write_text(json.dumps({"config": written, "identities": [1, 2, 3]}))
    images = randn(5, 2, 3, 128, 64)
    loaded = load_task(tmp_path)
    with torch.no_grad():
        for mode, encode in task.encoders().items():
            assert torch.equal(loaded.encoders()[mode](images), encode(images))
    assert trained_config({"config": written, "identities": []}) == config


def test_an_old_config_keeps_what_it_says():
    said = TrainConfig(scgi=ScgiConfig(prompt_end="person.", cgi=False)).model_dump(mode="json")
    assert trained_config({"config": said, "identities": []}).scgi.prompt_end == "person."
    assert trained_config({"config": {"method": "clip_reid"}, "identities": []}).scgi == ScgiConfig(prompt_end="mixed")
    assert config_of(TrainConfig()).scgi.prompt_end == "person"


def test_mixed_prompts_have_the_fingerprint_of_before_the_setting():
    mixed = ScgiConfig(prompt_end="mixed").identity()
    assert not mixed.keys() & set(NEWER)
    assert set(ScgiConfig().identity()) == {*mixed, *NEWER}
    for name, value in {"contrast_text": "both", "supervised": "fused", "inversion_feed_norm": True}.items():
        assert ScgiConfig(prompt_end="mixed", **{name: value}).identity() == {**mixed, name: value}


# Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scgi", "problems"),
    [
        (
            {"cgi": False, "contrast_text": "both", "contrast_image": "refined", "inversion_inputs": "normalized"},
            [
                r"scgi\.contrast_text: composed prompts are made by CGI; set scgi\.cgi=true or scgi\.contrast_te",
                r"scgi\.contrast_image: refined tokens are made by CGI; set scgi\.cgi=true or scgi\.contrast_im",
                r'scgi\.inversion_inputs: "normalized" scales the inputs of CGI, which is off; set scgi\.cgi=true or',
            ],
        ),
        (
            {"cgi": False, "inversion_feed_norm": True, "fusion_tokens": "refined"},
            [
                r"scgi\.inversion_feed_norm: .* off; set scgi\.cgi=true or scgi\.inversion_feed_norm=false",
                r"scgi\.fusion_tokens: refined tokens are made by CGI; set scgi\.cgi=true or scgi\.fusion_tokens=raw",
            ],
        ),
        ({"contrast_text": "caption", "cff": False}, [r"leaves CGI without a loss; set scgi\.contrast_text=both, or"]),
        ({"contrast_text": "caption", "fixed_prompt_ratio": 1}, [r"leaves CGI without a loss"]),
        ({"supervised": "image"}, [r'"image" leaves CFF without a loss; set scgi\.cff=false or scgi\.supervised=both']),
        ({"supervised": "fused", "cff": False}, [r"set scgi\.cff=true or scgi\.supervised=image"]),
        ({"prompt_end": "people"}, [r"scgi\.prompt_end: .*'person', 'person\.' or 'mixed'"]),
    ],
)
def test_what_does_not_work_together_is_refused_with_what_does(scgi, problems):
    with pytest.raises(ConfigError) as refused:
        build_config(TrainConfig, {"scgi": scgi}, "training")
    for problem in problems:
        assert refused.match(problem)
    for method in ("clip_reid", "clip_baseline"):
        if "prompt_end" not in scgi:
            TrainConfig(method=method, scgi=ScgiConfig(**scgi))  # they ignore it
