"""CLIP files of any origin: the same features for every naming, and one error for everything that does not fit."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from data.artifacts.store import ArtifactStore
from data.errors import WeightsError
from reid.clip_files.grids import grid_of, plausible_grids
from reid.clip_files.names import Layout, architecture
from reid.config.backbone import BackboneConfig
from reid.config.train import PromptConfig, TrainConfig
from reid.convert import convert
from reid.inputs.captions import weights_identity
from reid.models.backbone import build_backbone, build_clip
from reid.models.loading import load_clip
from reid.models.pretrained import HUB_REPOSITORIES, TINY_FOLDER, weights_file
from reid.models.weights_source import ARCHITECTURES, described, read_source, resolved
from reid.tasks.build import build_task
from reid.training.checkpoint import load_task, load_untrained, save_model

TEXTS = ["A woman in a red coat.", "a man", "an elderly man with a backpack and blue jeans"]
POSITIONS = "visual.positional_embedding"
SCALARS = {"input_resolution": 128, "context_length": 77, "vocab_size": 700}


def _images(height=128, width=64):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _features(backbone, height=128, width=64):
    with torch.no_grad():
        return backbone.eval().image(_images(height, width)).tokens_BLD, backbone.text(TEXTS)


def _same(backbone, expected, **how):
    for got, want in zip(_features(backbone), expected, strict=True):
        torch.testing.assert_close(got, want, **how)


def _own(folder, state, name="mine.safetensors", **settings):
    """Write `state` to a file in `folder` and return the config of a backbone with these weights."""
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return BackboneConfig(weights=str(path), **settings)


@pytest.fixture(scope="module")
def state():
    return load_file(TINY_FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def shipped():
    return _features(build_backbone(BackboneConfig()))


@pytest.fixture(scope="module")
def clip():
    return build_backbone(BackboneConfig(weights="random")).clip


# --- what is harmless


def _with_prefix(prefix):
    return lambda state: {prefix + name: value.clone() for name, value in state.items()}


HARMLESS = {
    "data parallel": _with_prefix("module."),
    "compiled": _with_prefix("_orig_mod."),
    "lightning": _with_prefix("model.clip."),
    "a loss of SigLIP": lambda state: {**state, "logit_bias": torch.tensor(-10.0)},
    "OpenAI's scalars": lambda state: {**state, **{n: torch.tensor(v) for n, v in SCALARS.items()}},
    "all of them": lambda state: _with_prefix("module.")(
        {**state, "logit_bias": torch.zeros(1), **{n: torch.tensor(v) for n, v in SCALARS.items()}}
    ),
    "a scale with an axis": lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    "float64": lambda state: {name: value.double() for name, value in state.items()},
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_harmless_differences_change_no_feature(change, state, shipped, tmp_path):
    _same(build_backbone(_own(tmp_path, change(state))), shipped, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_give_the_features_of_their_values_in_float32(dtype, state, tmp_path):
    rounded = {name: value.to(dtype) for name, value in state.items()}
    half = build_backbone(_own(tmp_path, rounded))
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    full = _own(tmp_path, {name: value.float() for name, value in rounded.items()}, "full.safetensors")
    _same(half, _features(build_backbone(full)), rtol=0, atol=0)


# --- Hugging Face's names


def _hugging_face(folder, activation, size=(128, 128), **changes):
    """Write a random CLIPModel of the tiny shape and return it."""
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 3}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 700, "eos_token_id": 699, "bos_token_id": 698, "hidden_act": activation},
        vision_config={**vision, "patch_size": 16, "image_size": size[0], "hidden_act": activation, **changes},
        projection_dim=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # transformers starts them at 1 and 0: a mix-up would not show
                parameter.data += 0.2 * torch.randn_like(parameter)
            elif "fc1" in name:
                parameter.data *= 20  # or the activations differ too little to tell one from the other
    model.save_pretrained(folder)
    return model


def _their_features(model, backbone):
    """transformers' own image and text features of the same input."""
    ids, _ = backbone.token_ids(TEXTS)
    with torch.no_grad():
        found = (
            model.get_image_features(pixel_values=_images(128, 128)),
            model.get_text_features(input_ids=torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))),
        )
    return [getattr(value, "pooler_output", value) for value in found]  # transformers 5.2 on returns an output


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face_models_give_the_features_of_transformers(activation, tmp_path):
    model = _hugging_face(tmp_path, activation)
    config = BackboneConfig(weights=str(tmp_path), height=128, width=128)
    backbone = build_backbone(config)
    image, text = _their_features(model, backbone)
    tokens, texts = _features(backbone, 128, 128)
    torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, text, rtol=1e-4, atol=1e-5)
    assert described(config)["activation"] == activation
    assert described(config)["activation_from"] == "config.json"
    (tmp_path / "config.json").unlink()
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    wrong = build_backbone(config.model_copy(update={"activation": other, "source_grid": (8, 8)}))
    assert (_features(wrong, 128, 128)[0][:, 0] - image).abs().max() > 1e-3  # a hundred times the tolerance above


def test_hugging_face_files_with_prefix_buffers_and_half_precision(tmp_path):
    model = _hugging_face(tmp_path / "whole", "gelu")
    stored = {f"module.{name}": value.half() for name, value in model.state_dict().items()}
    stored["module.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    stored["module.vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    config = _own(tmp_path, stored, height=128, width=128)
    (tmp_path / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    for parameter in model.parameters():
        parameter.data = parameter.half().float()
    backbone = build_backbone(config)
    image, text = _their_features(model, backbone)
    tokens, texts = _features(backbone, 128, 128)
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
def test_what_no_shape_shows_is_read_off_the_config(change, named, tmp_path):
    _hugging_face(tmp_path, "gelu", **change)
    with pytest.raises(WeightsError, match=named):
        build_backbone(BackboneConfig(weights=str(tmp_path), height=128, width=128))


def test_a_model_of_another_type_is_refused(tmp_path):
    _hugging_face(tmp_path, "gelu")
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


def test_all_that_does_not_fit_is_in_one_message(state, tmp_path):
    changed = {name: value for name, value in state.items() if ".resblocks.1." not in name}
    changed |= {"adapter.down": torch.zeros(2), "ln_final.bias": torch.zeros(3)}
    with pytest.raises(WeightsError) as caught:
        build_backbone(_own(tmp_path, changed))
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
    model = _hugging_face(tmp_path / "whole", "gelu")
    stored = {name: value for name, value in model.state_dict().items() if name.startswith("vision_model.")}
    del stored["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    config = _own(tmp_path, stored, source_grid=(8, 8))
    with pytest.raises(WeightsError) as caught:
        build_backbone(config)
    assert "missing 40 tensors: logit_scale, text_model.embeddings." in str(caught.value)
    listed = [name for name in model.state_dict() if name.startswith("text_") or "k_proj.bias" in name]
    assert "text_projection.weight" in listed


def test_quantized_weights_are_refused(state, tmp_path):
    whole = {name: value.to(torch.int8) if "c_fc.weight" in name else value for name, value in state.items()}
    with pytest.raises(WeightsError, match=r"7 tensors are stored as int8: .*c_fc\.weight"):
        build_backbone(_own(tmp_path, whole))


def test_two_models_in_one_file_are_refused(state, tmp_path):
    both = {**_with_prefix("student.")(state), **_with_prefix("teacher.")(state)}
    with pytest.raises(WeightsError, match=r"several models: student\.\* \(open_clip\), teacher\.\*"):
        build_backbone(_own(tmp_path, both))


# --- other architectures


def _header(*, vision=768, patch=16, blocks=12, text=512, joint=512, positions=196):
    """The few tensors that distinguish architectures; all others are missing."""
    tensors = {
        "visual.conv1.weight": torch.zeros(vision, 3, patch, patch, dtype=torch.float16),
        POSITIONS: torch.zeros(positions + 1, vision, dtype=torch.float16),
        "token_embedding.weight": torch.zeros(5, text, dtype=torch.float16),
        "text_projection": torch.zeros(text, joint, dtype=torch.float16),
        "ln_final.weight": torch.ones(text, dtype=torch.float16),
    }
    layers = {f"visual.transformer.resblocks.{number}.ln_1.bias": torch.zeros(1) for number in range(blocks)}
    return {**tensors, **layers, **{f"transformer.resblocks.{n}.ln_1.bias": torch.zeros(1) for n in range(12)}}


def test_another_architecture_is_named_before_anything_else_is_asked(tmp_path):
    large = _header(vision=1024, patch=14, blocks=24, text=768, joint=768, positions=256)
    with pytest.raises(WeightsError) as caught:
        read_source(_own(tmp_path, large, name="large.safetensors").model_copy(update={"name": "vit_b16"}))
    for part in ("ViT-L/14", "text width 768", "train.backbone.name=vit_b16 is a ViT-B/16", "tiny, vit_b16, rn50"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=r"ViT-B/16 .*set train\.backbone\.name=vit_b16"):
        read_source(_own(tmp_path, _header()))


def test_the_tiny_file_in_a_vit_b16_says_which_name_fits(state, tmp_path):
    with pytest.raises(WeightsError, match=r"set train\.backbone\.name=tiny"):
        build_backbone(_own(tmp_path, state, name="t.safetensors").model_copy(update={"name": "vit_b16"}))


def test_the_known_architectures_are_those_that_are_built(clip):
    shapes = {name: value.shape for name, value in clip.state_dict().items()}
    assert architecture(shapes, Layout(naming="open_clip", prefix="")) == ARCHITECTURES["tiny"]


@pytest.mark.parametrize("name", ["vit_b16", "rn50"])
def test_the_large_architectures_too(name):
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name, weights="random", height=256, width=128))
    shapes = {key: value.shape for key, value in backbone.clip.state_dict().items()}
    assert architecture(shapes, Layout(naming="open_clip", prefix="")) == ARCHITECTURES[name]
    assert tuple(backbone.clip.visual.grid_size) == (16, 8)


# --- positions


def _positions(rows, columns, width=192):
    """Positions that contain their row in channel 0 and their column in channel 1."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1).float()
    found = torch.zeros(1 + rows * columns, width)
    found[1:, :2] = grid.reshape(-1, 2)
    return found


SIZES = [(256, 128, 0), (256, 64, 0), (128, 64, 12), (160, 96, 0), (256, 128, 12), (96, 96, 0), (96, 160, 0)]


@pytest.mark.parametrize(("height", "width", "stride"), SIZES)
def test_positions_whose_number_fits_are_taken_as_they_are(height, width, stride, state, tmp_path):
    config = _own(tmp_path, state, height=height, width=width, stride=stride)
    kept = _positions(*config.grid)
    save_file({**state, POSITIONS: kept}, tmp_path / "mine.safetensors")
    backbone = build_backbone(config)
    assert torch.equal(backbone.clip.visual.positional_embedding, kept)
    assert tuple(backbone.clip.visual.grid_size) == config.grid
    assert described(config)["grid"] == list(config.grid)


def test_a_count_that_fits_several_grids_is_asked_for(state, tmp_path):
    config = _own(tmp_path, {**state, POSITIONS: _positions(16, 8)}, height=128, width=64)
    with pytest.raises(WeightsError) as caught:
        build_backbone(config)
    assert "128 position embeddings fit several grids; the model has 8 x 4" in str(caught.value)
    assert "train.backbone.source_grid" in str(caught.value)
    assert "[16,8]" in str(caught.value)
    for grid in ((16, 8), (8, 16)):
        given = config.model_copy(update={"source_grid": grid})
        save_file({**state, POSITIONS: _positions(*grid)}, tmp_path / "mine.safetensors")
        found = build_backbone(given).clip.visual.positional_embedding[1:].reshape(8, 4, -1)
        # Bilinear: the middle of each new patch, in rows and columns of the old grid.
        rows, columns = (torch.arange(n) * old / n + (old / n - 1) / 2 for n, old in zip((8, 4), grid, strict=True))
        torch.testing.assert_close(found[:, :, 0], rows[:, None].expand(8, 4))
        torch.testing.assert_close(found[:, :, 1], columns.expand(8, 4))
    with pytest.raises(WeightsError, match=r"do not fill a grid of 5 x 5\. Set train\.backbone\.source_grid"):
        build_backbone(config.model_copy(update={"source_grid": (5, 5)}))


def test_overlapping_patches_ask_too_and_take_the_setting(state, tmp_path):
    config = _own(tmp_path, {**state, POSITIONS: _positions(21, 10)}, height=256, width=128)
    with pytest.raises(WeightsError, match=r"210 position embeddings.*\[21,10\]"):
        build_backbone(config)
    found = build_backbone(config.model_copy(update={"source_grid": (21, 10)})).clip.visual.positional_embedding
    assert found.shape[0] == 129
    assert torch.all(found[1:, 0].reshape(16, 8).diff(dim=0) > 0)
    kept = config.model_copy(update={"stride": 12})
    assert torch.equal(build_backbone(kept).clip.visual.positional_embedding, _positions(21, 10))


def test_the_configs_image_size_says_the_grid(state, tmp_path):
    square = _own(tmp_path, {**state, POSITIONS: _positions(8, 8)}, height=256, width=64)
    assert torch.equal(build_backbone(square).clip.visual.positional_embedding, _positions(8, 8))  # the number fits
    _write_open_clip(tmp_path, image_size=128)
    found = build_backbone(square).clip.visual.positional_embedding[1:].reshape(16, 4, -1)
    torch.testing.assert_close(found[0, :, 1], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    with pytest.raises(WeightsError, match=r"source_grid=\[16,4\], but the image size .* grid of \[8,8\]"):
        build_backbone(square.model_copy(update={"source_grid": (16, 4)}))
    # The original config of a model fine-tuned at another size has another count and is ignored.
    _write_open_clip(tmp_path, image_size=224)
    assert torch.equal(build_backbone(square).clip.visual.positional_embedding, _positions(8, 8))


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (196, (16, 8), (14, 14)),
        (49, (16, 8), (7, 7)),
        (196, (21, 10), (14, 14)),
        (128, (16, 8), (16, 8)),
        (121, (16, 8), (11, 11)),
        (64, (16, 4), (16, 4)),
    ],
)
def test_counts_that_are_clear(count, wanted, expected):
    assert grid_of(count, wanted) == expected


@pytest.mark.parametrize(
    ("count", "wanted"), [(576, (16, 8)), (64, (16, 8)), (196, (28, 7)), (210, (16, 8)), (23, (4, 2))]
)
def test_counts_that_are_not(count, wanted):
    with pytest.raises(WeightsError):
        grid_of(count, wanted)


def test_plausible_grids_are_those_of_upright_and_lying_images():
    assert plausible_grids(64) == [(4, 16), (8, 8), (16, 4)]
    assert plausible_grids(23) == []


def test_a_resnets_positions_follow_the_same_rules(tmp_path):
    base = BackboneConfig(
        name="rn50", weights=str(tmp_path / "r.safetensors"), height=256, width=128, activation="gelu"
    )
    for count, given, grid in ((49, None, [7, 7]), (128, None, [16, 8]), (144, (18, 8), [18, 8])):
        rows = torch.zeros(count + 1, 2048)
        save_file(
            {"visual.attnpool.positional_embedding": rows, "ln_final.weight": torch.ones(512)},
            tmp_path / "r.safetensors",
        )
        assert described(base.model_copy(update={"source_grid": given}))["grid"] == grid
    with pytest.raises(WeightsError, match="144 position embeddings fit several grids"):
        read_source(base)


# --- activation


def _write_open_clip(folder, image_size=(128, 64), **changes):
    shape = json.loads((TINY_FOLDER / "config.json").read_text())["clip"]
    shape["vision_cfg"]["image_size"] = image_size
    content = {"model_cfg": {**shape, **changes}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("stated", "expected"), [(True, "quick_gelu"), (False, "gelu"), (None, "gelu")])
def test_open_clips_config_beside_the_file_says_the_activation(stated, expected, state, shipped, tmp_path):
    config = _own(tmp_path, state)
    _write_open_clip(tmp_path, **({} if stated is None else {"quick_gelu": stated}))
    backbone = build_backbone(config)
    block = backbone.clip.visual.transformer.resblocks[0].mlp.gelu
    assert type(block).__name__ == {"quick_gelu": "QuickGELU", "gelu": "GELU"}[expected]
    assert (described(config)["activation"], described(config)["activation_from"]) == (
        expected,
        "open_clip_config.json",
    )
    if expected == "gelu":
        _same(backbone, shipped, rtol=0, atol=0)
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[expected]
    assert resolved(config).activation == expected
    build_backbone(config.model_copy(update={"activation": expected}))
    with pytest.raises(WeightsError, match=rf"activation={other}, but .*open_clip_config\.json says {expected}"):
        build_backbone(config.model_copy(update={"activation": other}))


def test_without_a_config_the_setting_is_asked_for(tmp_path):
    config = _own(tmp_path, _header()).model_copy(update={"name": "vit_b16", "height": 256, "width": 128})
    with pytest.raises(WeightsError) as caught:
        read_source(config)
    for part in ("mine.safetensors", "open_clip_config.json", "activation=quick_gelu", "activation=gelu"):
        assert part in str(caught.value)
    for activation in ("quick_gelu", "gelu"):
        given = config.model_copy(update={"activation": activation})
        assert described(given)["activation"] == activation
        assert described(given)["activation_from"] == "train.backbone.activation"
        assert described(given)["grid"] == [14, 14]


def test_openais_own_archives_say_it_by_their_scalars(tmp_path):
    scalars = {name: torch.tensor(value) for name, value in SCALARS.items()}
    config = _own(tmp_path, {**_header(), **scalars}).model_copy(
        update={"name": "vit_b16", "height": 256, "width": 128}
    )
    assert described(config)["activation"] == "quick_gelu"


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\n", '{"model_cfg": {"embed', "{}", "[]"]
)
def test_a_config_that_cannot_be_read_is_named(content, state, tmp_path):
    config = _own(tmp_path, state)
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"open_clip_config\.json"):
        read_source(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"embed_dim": 512}, "embed_dim is 512 instead of 128"),
        ({"text_cfg": {"heads": 8}}, "text_cfg.heads is 8 instead of 2"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask"),
        ({"vision_cfg": {"final_ln_after_pool": True}}, "vision_cfg.final_ln_after_pool"),
    ],
)
def test_a_config_of_another_model_is_refused(changes, named, state, tmp_path):
    config = _own(tmp_path, state)
    _write_open_clip(tmp_path, **changes)
    with pytest.raises(WeightsError, match=named):
        build_backbone(config)


@pytest.mark.parametrize("value", ["false", "true", 1.0, [], "no"])
def test_an_activation_that_is_not_true_or_false_is_refused(value, state, tmp_path):
    config = _own(tmp_path, state)
    _write_open_clip(tmp_path, quick_gelu=value)
    with pytest.raises(WeightsError, match=r"open_clip_config\.json: quick_gelu must be true or false, not "):
        read_source(config)


def test_two_configs_that_name_different_activations_are_refused(state, tmp_path):
    config = _own(tmp_path, state)
    _write_open_clip(tmp_path, quick_gelu=False)
    for act, refused in (("gelu", False), ("quick_gelu", True)):
        towers = {tower: {"hidden_act": act} for tower in ("vision_config", "text_config")}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", **towers}))
        if refused:
            with pytest.raises(
                WeightsError, match=r"open_clip_config\.json says gelu and .*config\.json says quick_gelu"
            ):
                read_source(config)
        else:
            assert read_source(config).activation == act


def test_a_config_of_something_else_says_nothing(state, shipped, tmp_path):
    config = _own(tmp_path, state)
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    _same(build_backbone(config), shipped, rtol=0, atol=0)


@pytest.mark.parametrize(
    "values",
    [
        {"activation": "quick_gelu"},
        {"name": "vit_b16", "weights": "openai", "activation": "gelu"},
        {"source_grid": (8, 4)},
        {"name": "vit_b16", "weights": "openai", "source_grid": (14, 14)},
        {"weights": "opanai"},
        {"height": 8},
    ],
)
def test_settings_that_contradict_the_weights_are_refused(values):
    with pytest.raises(ValidationError):
        BackboneConfig(**values)


# --- fingerprints


def test_fingerprints_of_shipped_openai_and_random_weights_are_those_of_before(tmp_path):
    store = ArtifactStore(tmp_path)
    plain = {"name": "tiny", "weights": "shipped", "height": 128, "width": 64, "stride": 0}
    assert BackboneConfig().identity() == plain
    published = {"name": "vit_b16", "weights": "openai", "height": 256, "width": 128, "stride": 12}
    assert BackboneConfig(**published).identity() == published
    assert weights_identity(store, BackboneConfig(), 3) == {
        "files": {
            "model.safetensors": "839842c62be20219a08a406ea86551fa62356a68eab804a392e8cbff0ed7c2a7",
            "config.json": "308f10efe28361d2a48f3a7bcec3379fedddbb5cd60d93c1ea42b7e47fba4629",
            "tokenizer.json": "4603d6e8ba7c828282a5db045537990ca9aed9b1d6abceecf3810ca56fe3809c",
        },
        "seed": None,
    }
    random = BackboneConfig(name="rn50", weights="random")
    assert weights_identity(store, random, 3) == {"files": {}, "seed": 3}
    assert weights_identity(store, BackboneConfig(activation="gelu"), 3) == weights_identity(store, BackboneConfig(), 3)


def test_own_files_are_known_by_content_activation_and_grid(state, tmp_path):
    store = ArtifactStore(tmp_path / "store")
    first = _own(tmp_path / "a", state)
    renamed = _own(tmp_path / "b", state, name="other.safetensors", activation="gelu")
    explicit = _own(tmp_path / "c", state, activation="quick_gelu")
    known = weights_identity(store, first, 0)
    assert known == weights_identity(store, renamed, 0) != weights_identity(store, explicit, 0)
    assert (known["activation"], known["grid"]) == ("gelu", [8, 4])
    assert first.identity() == renamed.identity() == explicit.identity()
    wide = _own(tmp_path / "d", {**state, POSITIONS: _positions(16, 8)}, source_grid=(16, 8))
    tall = wide.model_copy(update={"source_grid": (8, 16)})
    assert weights_identity(store, wide, 0) != weights_identity(store, tall, 0)
    assert (
        weights_identity(store, BackboneConfig(weights="random", activation="quick_gelu"), 0)["activation"]
        == "quick_gelu"
    )


# --- our own train artifacts


def _artifact(folder, config, backbone=None):
    """Write what the train stage writes: the model of `config`, its CLIP replaced by that of `backbone`."""
    texts = torch.zeros(3, 128) if config.method == "clip_reid" else None
    task = build_task(config, identities=3, cameras=[1, 2], texts_CD=texts)
    with torch.no_grad():
        for _, parameter in task.backbone.image_parameters():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    folder.mkdir()
    save_model(folder / "model.safetensors", task)
    written = {**config.model_dump(mode="json"), "backbone": resolved(config.backbone).model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps({"config": written, "identities": [4, 5, 6]}))
    return task.eval()


METHODS = {
    "clip_scgi": TrainConfig(),
    "clip_scgi with cameras": TrainConfig(sie=1.0),
    "clip_reid": TrainConfig(method="clip_reid", prompts=PromptConfig(epochs=1)),
    "clip_baseline": TrainConfig(method="clip_baseline"),
}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_a_train_artifact_is_a_start_for_more_training(config, tmp_path):
    trained = _artifact(tmp_path / "a", config)
    for weights in (tmp_path / "a", tmp_path / "a" / "model.safetensors"):
        start = BackboneConfig(weights=str(weights))
        built = build_backbone(start)
        _same(built, _features(trained.backbone), rtol=1e-4, atol=1e-5)
        expected = trained.backbone.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in built.state_dict().items())
        found = described(start)
        assert found["names"] == "train artifact"
        assert found["activation"] == "gelu"
        assert "heads" in found["left_out"]
        assert ("camera_shift_KV" in found["left_out"]) == bool(config.sie)
        assert sum(found["left_out"].values()) == sum(
            not name.startswith("backbone.clip.") for name in trained.state_dict()
        )


def test_an_artifact_says_its_grid_and_activation(state, tmp_path):
    own = _own(tmp_path, state, activation="quick_gelu", height=256, width=128, stride=12)
    trained = _artifact(tmp_path / "a", TrainConfig(method="clip_baseline", backbone=own))
    again = load_task(tmp_path / "a")
    (tmp_path / "mine.safetensors").unlink()
    assert type(again.backbone.clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    images = _images(256, 128)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone.image(images).joint_BD, trained.backbone.image(images).joint_BD)
    start = BackboneConfig(weights=str(tmp_path / "a"), height=256, width=128)
    assert described(start)["grid"] == [21, 10]
    assert described(start)["activation"] == "quick_gelu"
    same = start.model_copy(update={"stride": 12})
    with torch.no_grad():
        torch.testing.assert_close(build_backbone(same).eval().image(images), trained.backbone.image(images))
    assert load_untrained(TrainConfig(backbone=start)).backbone.clip.visual.positional_embedding.shape[0] == 129


def test_a_checkpoint_without_the_frozen_tower_is_refused(tmp_path):
    task = _artifact(tmp_path / "a", TrainConfig())
    half = {name: value for name, value in task.state_dict().items() if "visual" in name or "heads" in name}
    with pytest.raises(WeightsError, match=r"missing 30 tensors: backbone\.clip\."):
        build_backbone(_own(tmp_path, half))


def test_a_trained_model_with_a_nan_is_named_too(tmp_path):
    task = _artifact(tmp_path / "a", TrainConfig())
    task.heads.joint.classifier.weight.data[0, 0] = float("nan")
    save_model(tmp_path / "a" / "model.safetensors", task)
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensor: heads\.joint\.classifier\.weight"):
        load_task(tmp_path / "a")


# --- files that are something else


def _cut(content):
    return content[: len(content) // 2]


DISGUISES = {
    "pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "page": (lambda _: b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
    "cut off": (_cut, "is cut off"),
    "header cut off": (lambda content: content[:1000], "is cut off"),
    "empty": (lambda _: b"", "is empty"),
    "zip": (lambda _: b"PK\3\4 ...", "python -m reid.convert"),
    "pickle": (lambda _: b"\x80\x02}q\x00.", "python -m reid.convert"),
    "text": (lambda _: b"hello, this is not a model", "not a safetensors file"),
}


@pytest.mark.parametrize(("change", "named"), DISGUISES.values(), ids=DISGUISES)
def test_files_that_are_something_else_are_called_by_what_they_are(change, named, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(change((TINY_FOLDER / "model.safetensors").read_bytes()))
    config = BackboneConfig(weights=str(path))
    for use in (read_source, build_backbone, lambda c: weights_identity(ArtifactStore(tmp_path), c, 0)):
        with pytest.raises(WeightsError) as caught:
            use(config)
        assert named in str(caught.value)
        assert str(path) in str(caught.value)
        assert "delete" not in str(caught.value)


def test_folders_without_one_file_say_what_they_hold(state, tmp_path):
    config = BackboneConfig(weights=str(tmp_path))
    with pytest.raises(WeightsError, match=r"contains no \.safetensors file"):
        read_source(config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(
        WeightsError, match=r"python -m reid\.convert \S+pytorch_model\.bin \S+pytorch_model\.safetensors"
    ):
        read_source(config)
    for name in ("one", "two"):
        _own(tmp_path, state, name=f"{name}.safetensors")
    with pytest.raises(WeightsError, match=r"one\.safetensors, two\.safetensors"):
        read_source(config)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"contains a CLIP in shards .* max_shard_size='100GB'"):
        read_source(config)
    with pytest.raises(WeightsError, match="does not exist"):
        read_source(BackboneConfig(weights=str(tmp_path / "none.safetensors")))


def test_the_embedded_file_as_ones_own_is_the_embedded_one(shipped):
    _same(build_backbone(BackboneConfig(weights=str(TINY_FOLDER))), shipped, rtol=0, atol=0)


# --- conversion of pickles


def _command(config_or_path):
    """The command in the message about a pickle, as words."""
    with pytest.raises((ValidationError, WeightsError)) as caught:
        BackboneConfig(weights=str(config_or_path))
    return shlex.split(str(caught.value).split("`")[1])


def _saved(folder, name, content, **how):
    path = folder / name
    torch.save(content, path, **how)
    return path


FORMATS = {
    "plain.pt": lambda s: s,
    "pytorch_model.bin": _with_prefix("module."),
    "epoch_3.pt": lambda s: {"epoch": 3, "state_dict": _with_prefix("module.")(s), "optimizer": {"lr": 1.0}},
    "tied.pt": lambda s: {**s, "logit_bias": s["logit_scale"]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_pickles_are_converted(name, state, shipped, tmp_path):
    convert(_saved(tmp_path, name, FORMATS[name](state)), tmp_path / "out.safetensors")
    _same(build_backbone(BackboneConfig(weights=str(tmp_path / "out.safetensors"))), shipped, rtol=0, atol=0)


def test_the_command_of_the_message_converts(state, shipped, tmp_path):
    words = _command(_saved(tmp_path, "old format.pth", state, _use_new_zipfile_serialization=False))
    assert words[:3] == ["python", "-m", "reid.convert"]
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(f"set train.backbone.weights={shlex.quote(words[-1])}")
    _same(build_backbone(BackboneConfig(weights=words[-1])), shipped, rtol=0, atol=0)


class _Archive(torch.nn.Module):
    """Like OpenAI's: the parameters of CLIP, three numbers beside them."""

    def __init__(self, clip):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.conv1 = torch.nn.Conv2d(3, 192, 16, 16, bias=False)
        self.visual.conv1.load_state_dict(clip.visual.conv1.state_dict())
        for name, value in SCALARS.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.visual.conv1(x)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_is_converted(clip, tmp_path):
    torch.jit.script(_Archive(clip)).save(str(tmp_path / "ViT.pt"))
    assert convert(tmp_path / "ViT.pt", tmp_path / "out.safetensors") == 4
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == {"visual.conv1.weight", *SCALARS}
    assert torch.equal(found["visual.conv1.weight"], clip.visual.conv1.weight)


class _Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, state):
    for content in ({"state_dict": state, "extra": _Harm(tmp_path / "harm")}, _Harm(tmp_path / "harm")):
        source = _saved(tmp_path, "evil.pt", content)
        with pytest.raises(WeightsError, match="contains more than tensors"):
            convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_what_cannot_be_converted_is_said(tmp_path, state):
    target = tmp_path / "out.safetensors"
    mixed = _saved(tmp_path, "mixed.pt", {**state, "epoch": 3})
    with pytest.raises(WeightsError, match="but has epoch"):
        convert(mixed, target)
    with pytest.raises(WeightsError, match="contains a list"):
        convert(_saved(tmp_path, "list.pt", [1, 2]), target)
    whole = _saved(tmp_path, "whole.pt", state)
    (tmp_path / "cut.pt").write_bytes(_cut(whole.read_bytes()))
    with pytest.raises(WeightsError, match=r"cut\.pt cannot be read"):
        convert(tmp_path / "cut.pt", target)
    with pytest.raises(WeightsError, match="does not exist"):
        convert(tmp_path / "none.pt", target)
    target.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="already exists"):
        convert(whole, target)
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["vit_b16", "rn50"])
def test_a_hub_that_cannot_be_reached_is_asked_once_and_nothing_is_downloaded(monkeypatch, name):
    asked = []

    def no_hub(_, repository, **options):
        asked.append((repository, options["timeout"]))
        raise ConnectionError("name not known\nRetrying")

    def local(*_, local_files_only=False):
        if not local_files_only:
            pytest.fail("a download tries again for half a minute, and says so each time")
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", local)
    repository = HUB_REPOSITORIES[name]
    with pytest.raises(WeightsError) as raised:
        weights_file(BackboneConfig(name=name, weights="openai"))
    assert asked == [(repository, 5.0)]
    message = str(raised.value)
    assert message.startswith(f"train.backbone.weights=openai needs open_clip_model.safetensors of {repository}: ")
    assert "(ConnectionError: name not known)" in message
    assert f"run `hf download {repository} open_clip_model.safetensors`" in message
    assert "set train.backbone.weights to that folder" in message
