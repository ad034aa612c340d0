"""CLIP files of any origin: the same features for every naming, and one error for everything that does not fit."""

import json
import re

import pytest
import torch

from data.errors import WeightsError
from reid.config.backbone import BackboneConfig
from reid.models.backbone import build_backbone, build_clip
from reid.models.loading import load_clip
from reid.models.weights_source import described
from tests.helpers.clip_files import (
    SCALARS,
    TEXTS,
    assert_features,
    features_of,
    own_file,
    random_images,
    with_prefix,
    write_hugging_face,
)

# --- what is harmless


HARMLESS = {
    "data parallel": with_prefix("module."),
    "compiled": with_prefix("_orig_mod."),
    "lightning": with_prefix("model.clip."),
    "a loss of SigLIP": lambda state: {**state, "logit_bias": torch.tensor(-10.0)},
    "OpenAI's scalars": lambda state: {**state, **{n: torch.tensor(v) for n, v in SCALARS.items()}},
    "all of them": lambda state: with_prefix("module.")(
        {**state, "logit_bias": torch.zeros(1), **{n: torch.tensor(v) for n, v in SCALARS.items()}}
    ),
    "a scale with an axis": lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    "float64": lambda state: {name: value.double() for name, value in state.items()},
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_harmless_differences_change_no_feature(change, state, shipped, tmp_path):
    assert_features(build_backbone(own_file(tmp_path, change(state))), shipped, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_give_the_features_of_their_values_in_float32(dtype, state, tmp_path):
    rounded = {name: value.to(dtype) for name, value in state.items()}
    half = build_backbone(own_file(tmp_path, rounded))
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    full = own_file(tmp_path, {name: value.float() for name, value in rounded.items()}, "full.safetensors")
    assert_features(half, features_of(build_backbone(full)), rtol=0, atol=0)


# --- Hugging Face's names


def _their_features(model, backbone):
    """transformers' own image and text features of the same input."""
    ids, _ = backbone.token_ids(TEXTS)
    with torch.no_grad():
        found = (
            model.get_image_features(pixel_values=random_images(128, 128)),
            model.get_text_features(input_ids=torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))),
        )
    return [getattr(value, "pooler_output", value) for value in found]  # transformers 5.2 on returns an output


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face_models_give_the_features_of_transformers(activation, tmp_path):
    model = write_hugging_face(tmp_path, activation)
    config = BackboneConfig(weights=str(tmp_path), height=128, width=128)
    backbone = build_backbone(config)
    image, text = _their_features(model, backbone)
    tokens, texts = features_of(backbone, 128, 128)
    torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, text, rtol=1e-4, atol=1e-5)
    assert described(config)["activation"] == activation
    assert described(config)["activation_from"] == "config.json"
    (tmp_path / "config.json").unlink()
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    wrong = build_backbone(config.model_copy(update={"activation": other, "source_grid": (8, 8)}))
    assert (features_of(wrong, 128, 128)[0][:, 0] - image).abs().max() > 1e-3  # a hundred times the tolerance above


def test_hugging_face_files_with_prefix_buffers_and_half_precision(tmp_path):
    model = write_hugging_face(tmp_path / "whole", "gelu")
    stored = {f"module.{name}": value.half() for name, value in model.state_dict().items()}
    stored["module.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    stored["module.vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    config = own_file(tmp_path, stored, height=128, width=128)
    (tmp_path / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    backbone = build_backbone(config)
    image, text = _their_features(model, backbone)
    tokens, texts = features_of(backbone, 128, 128)
    torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, text, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_attention_heads": 6}, "vision_cfg.head_width is 32 instead of 64"),
        ({"layer_norm_eps": 1e-3}, "vision_cfg.norm_kwargs"),
        ({"hidden_act": "relu"}, "relu"),
        ({"patch_size": 32}, "patch"),
    ],
)
def test_settings_that_shapes_do_not_show_are_read_from_the_config(change, named, tmp_path):
    write_hugging_face(tmp_path, "gelu", **change)
    with pytest.raises(WeightsError, match=named):
        build_backbone(BackboneConfig(weights=str(tmp_path), height=128, width=128))


def test_a_model_of_another_type_is_refused(tmp_path):
    write_hugging_face(tmp_path, "gelu")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "siglip"}))
    with pytest.raises(WeightsError, match="of type 'siglip'"):
        build_backbone(BackboneConfig(weights=str(tmp_path), height=128, width=128))


# --- every parameter comes from the file


SMALL_TEXT = {"context_length": 8, "vocab_size": 20, "width": 64, "heads": 1, "layers": 2}
SMALL = {
    "vit": {"image_size": [32, 32], "layers": 2, "width": 64, "patch_size": 16},
    "resnet": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


@pytest.fixture(scope="module", params=SMALL.values(), ids=SMALL)
def small(request):
    """A small CLIP and its tensors, without the counters that change no result."""
    with torch.random.fork_rng():
        clip = build_clip({"embed_dim": 32, "vision_cfg": request.param, "text_cfg": SMALL_TEXT}, 32, 32)
    return clip, {name: value for name, value in clip.state_dict().items() if value.is_floating_point()}


def test_each_absent_tensor_is_named(small):
    clip, state = small
    load_clip(clip, state, "the file")
    for name in state:
        with pytest.raises(WeightsError) as caught:
            load_clip(clip, {key: value for key, value in state.items() if key != name}, "the file")
        assert f"missing 1 tensor: {name}" in str(caught.value)
        assert str(caught.value).startswith("the file does not fit the backbone: ")


def test_each_tensor_of_another_shape_is_named_with_both_shapes(small):
    clip, state = small
    for name, value in state.items():
        if value.numel() == 1:
            continue
        wrong = value.new_zeros([*value.shape[:-1], value.shape[-1] + 1])
        with pytest.raises(WeightsError) as caught:
            load_clip(clip, {**state, name: wrong}, "the file")
        assert f"{name} is {list(wrong.shape)} and should be {list(value.shape)}" in str(caught.value)


def test_each_tensor_that_is_not_finite_is_named(small):
    clip, state = small
    for number, name in list(enumerate(state))[:: 1 + len(state) // 60]:
        damaged = state[name].clone()
        damaged.view(-1)[-1] = (float("nan"), float("inf"), -float("inf"))[number % 3]
        dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[number % 4]
        with pytest.raises(WeightsError) as caught:
            load_clip(clip, {**state, name: damaged.to(dtype)}, "the file")
        assert f"the file contains NaN or infinity in 1 tensor: {name};" in str(caught.value)


def test_each_matrix_of_zeros_is_named(small):
    clip, state = small
    for name, value in state.items():
        changed = {**state, name: torch.zeros_like(value)}
        if value.dim() < 2:
            load_clip(clip, changed, "the file")
            continue
        with pytest.raises(WeightsError, match=f"the file contains only zeros in 1 tensor: {re.escape(name)}"):
            load_clip(clip, changed, "the file")


def test_a_refused_file_changes_nothing(small):
    clip, state = small
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    other = {name: value + 1 for name, value in state.items()}
    for wrong in ({**other, "extra": torch.zeros(1)}, {**other, "ln_final.bias": torch.full((64,), float("nan"))}):
        with pytest.raises(WeightsError):
            load_clip(clip, wrong, "the file")
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())


def test_one_message_lists_all_differences(state, tmp_path):
    changed = {name: value for name, value in state.items() if ".resblocks.1." not in name}
    changed |= {"adapter.down": torch.zeros(2), "ln_final.bias": torch.zeros(3)}
    with pytest.raises(WeightsError) as caught:
        build_backbone(own_file(tmp_path, changed))
    message = str(caught.value)
    for part in (
        "mine.safetensors",
        "missing 24 tensors: transformer.resblocks.1.attn.in_proj_bias",
        "and 21 more",
        "unexpected 1 tensor: adapter.down",
        "ln_final.bias is [3] and should be [128]",
    ):
        assert part in message
    assert "\n" not in message


def test_nothing_is_left_random():
    first, second = (build_backbone(BackboneConfig(), seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_parts_of_hugging_face_files_have_their_own_names(tmp_path):
    model = write_hugging_face(tmp_path / "whole", "gelu")
    stored = {name: value for name, value in model.state_dict().items() if name.startswith("vision_model.")}
    del stored["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    config = own_file(tmp_path, stored, source_grid=(8, 8))
    with pytest.raises(WeightsError) as caught:
        build_backbone(config)
    assert "missing 40 tensors: logit_scale, text_model.embeddings." in str(caught.value)
    listed = [name for name in model.state_dict() if name.startswith("text_") or "k_proj.bias" in name]
    assert "text_projection.weight" in listed


def test_quantized_weights_are_refused(state, tmp_path):
    whole = {name: value.to(torch.int8) if "c_fc.weight" in name else value for name, value in state.items()}
    with pytest.raises(WeightsError, match=r"7 tensors are stored as int8: .*c_fc\.weight"):
        build_backbone(own_file(tmp_path, whole))


def test_two_models_in_one_file_are_refused(state, tmp_path):
    both = {**with_prefix("student.")(state), **with_prefix("teacher.")(state)}
    with pytest.raises(WeightsError, match=r"several models: student\.\* \(open_clip\), teacher\.\*"):
        build_backbone(own_file(tmp_path, both))
