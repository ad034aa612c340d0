"""How a CLIP file is read: architecture, grid of the positions, activation, and the fingerprint of all of it."""

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from data.artifacts.store import ArtifactStore
from data.errors import WeightsError
from reid.clip_files.grids import grid_of, plausible_grids
from reid.clip_files.names import Layout, architecture
from reid.config.backbone import BackboneConfig
from reid.inputs.captions import weights_identity
from reid.models.backbone import build_backbone
from reid.models.weights_source import ARCHITECTURES, described, read_source, resolved
from tests.helpers.clip_files import (
    POSITIONS,
    SCALARS,
    assert_features,
    own_file,
    write_open_clip,
)

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


def test_another_architecture_is_named_before_other_problems(tmp_path):
    large = _header(vision=1024, patch=14, blocks=24, text=768, joint=768, positions=256)
    with pytest.raises(WeightsError) as caught:
        read_source(own_file(tmp_path, large, name="large.safetensors").model_copy(update={"name": "vit_b16"}))
    for part in ("ViT-L/14", "text width 768", "train.backbone.name=vit_b16 is a ViT-B/16", "tiny, vit_b16, rn50"):
        assert part in str(caught.value)
    with pytest.raises(WeightsError, match=r"ViT-B/16 .*set train\.backbone\.name=vit_b16"):
        read_source(own_file(tmp_path, _header()))


def test_the_tiny_file_in_a_vit_b16_says_which_name_fits(state, tmp_path):
    with pytest.raises(WeightsError, match=r"set train\.backbone\.name=tiny"):
        build_backbone(own_file(tmp_path, state, name="t.safetensors").model_copy(update={"name": "vit_b16"}))


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
def test_positions_whose_number_fits_are_not_resized(height, width, stride, state, tmp_path):
    config = own_file(tmp_path, state, height=height, width=width, stride=stride)
    kept = _positions(*config.grid)
    save_file({**state, POSITIONS: kept}, tmp_path / "mine.safetensors")
    backbone = build_backbone(config)
    assert torch.equal(backbone.clip.visual.positional_embedding, kept)
    assert tuple(backbone.clip.visual.grid_size) == config.grid
    assert described(config)["grid"] == list(config.grid)


def test_a_count_that_fits_several_grids_needs_the_setting(state, tmp_path):
    config = own_file(tmp_path, {**state, POSITIONS: _positions(16, 8)}, height=128, width=64)
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


def test_overlapping_patches_need_the_setting_too(state, tmp_path):
    config = own_file(tmp_path, {**state, POSITIONS: _positions(21, 10)}, height=256, width=128)
    with pytest.raises(WeightsError, match=r"210 position embeddings.*\[21,10\]"):
        build_backbone(config)
    found = build_backbone(config.model_copy(update={"source_grid": (21, 10)})).clip.visual.positional_embedding
    assert found.shape[0] == 129
    assert torch.all(found[1:, 0].reshape(16, 8).diff(dim=0) > 0)
    kept = config.model_copy(update={"stride": 12})
    assert torch.equal(build_backbone(kept).clip.visual.positional_embedding, _positions(21, 10))


def test_the_image_size_of_the_config_defines_the_grid(state, tmp_path):
    square = own_file(tmp_path, {**state, POSITIONS: _positions(8, 8)}, height=256, width=64)
    assert torch.equal(build_backbone(square).clip.visual.positional_embedding, _positions(8, 8))  # the number fits
    write_open_clip(tmp_path, image_size=128)
    found = build_backbone(square).clip.visual.positional_embedding[1:].reshape(16, 4, -1)
    torch.testing.assert_close(found[0, :, 1], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    with pytest.raises(WeightsError, match=r"source_grid=\[16,4\], but the image size .* grid of \[8,8\]"):
        build_backbone(square.model_copy(update={"source_grid": (16, 4)}))
    # The original config of a model fine-tuned at another size has another count and is ignored.
    write_open_clip(tmp_path, image_size=224)
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
def test_counts_with_one_grid(count, wanted, expected):
    assert grid_of(count, wanted) == expected


@pytest.mark.parametrize(
    ("count", "wanted"), [(576, (16, 8)), (64, (16, 8)), (196, (28, 7)), (210, (16, 8)), (23, (4, 2))]
)
def test_counts_with_several_grids(count, wanted):
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


@pytest.mark.parametrize(("stated", "expected"), [(True, "quick_gelu"), (False, "gelu"), (None, "gelu")])
def test_the_open_clip_config_beside_the_file_defines_the_activation(stated, expected, state, shipped, tmp_path):
    config = own_file(tmp_path, state)
    write_open_clip(tmp_path, **({} if stated is None else {"quick_gelu": stated}))
    backbone = build_backbone(config)
    block = backbone.clip.visual.transformer.resblocks[0].mlp.gelu
    assert type(block).__name__ == {"quick_gelu": "QuickGELU", "gelu": "GELU"}[expected]
    assert (described(config)["activation"], described(config)["activation_from"]) == (
        expected,
        "open_clip_config.json",
    )
    if expected == "gelu":
        assert_features(backbone, shipped, rtol=0, atol=0)
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[expected]
    assert resolved(config).activation == expected
    build_backbone(config.model_copy(update={"activation": expected}))
    with pytest.raises(WeightsError, match=rf"activation={other}, but .*open_clip_config\.json says {expected}"):
        build_backbone(config.model_copy(update={"activation": other}))


def test_without_a_config_the_setting_is_needed(tmp_path):
    config = own_file(tmp_path, _header()).model_copy(update={"name": "vit_b16", "height": 256, "width": 128})
    with pytest.raises(WeightsError) as caught:
        read_source(config)
    for part in ("mine.safetensors", "open_clip_config.json", "activation=quick_gelu", "activation=gelu"):
        assert part in str(caught.value)
    for activation in ("quick_gelu", "gelu"):
        given = config.model_copy(update={"activation": activation})
        assert described(given)["activation"] == activation
        assert described(given)["activation_from"] == "train.backbone.activation"
        assert described(given)["grid"] == [14, 14]


def test_openais_archives_are_recognized_by_their_scalars(tmp_path):
    scalars = {name: torch.tensor(value) for name, value in SCALARS.items()}
    config = own_file(tmp_path, {**_header(), **scalars}).model_copy(
        update={"name": "vit_b16", "height": 256, "width": 128}
    )
    assert described(config)["activation"] == "quick_gelu"


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\n", '{"model_cfg": {"embed', "{}", "[]"]
)
def test_a_config_that_cannot_be_read_is_named(content, state, tmp_path):
    config = own_file(tmp_path, state)
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
    config = own_file(tmp_path, state)
    write_open_clip(tmp_path, **changes)
    with pytest.raises(WeightsError, match=named):
        build_backbone(config)


@pytest.mark.parametrize("value", ["false", "true", 1.0, [], "no"])
def test_an_activation_that_is_not_true_or_false_is_refused(value, state, tmp_path):
    config = own_file(tmp_path, state)
    write_open_clip(tmp_path, quick_gelu=value)
    with pytest.raises(WeightsError, match=r"open_clip_config\.json: quick_gelu must be true or false, not "):
        read_source(config)


def test_two_configs_that_name_different_activations_are_refused(state, tmp_path):
    config = own_file(tmp_path, state)
    write_open_clip(tmp_path, quick_gelu=False)
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


def test_a_config_of_something_else_is_ignored(state, shipped, tmp_path):
    config = own_file(tmp_path, state)
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    assert_features(build_backbone(config), shipped, rtol=0, atol=0)


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


def test_fingerprints_of_shipped_openai_and_random_weights_do_not_change(tmp_path):
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
    first = own_file(tmp_path / "a", state)
    renamed = own_file(tmp_path / "b", state, name="other.safetensors", activation="gelu")
    explicit = own_file(tmp_path / "c", state, activation="quick_gelu")
    known = weights_identity(store, first, 0)
    assert known == weights_identity(store, renamed, 0) != weights_identity(store, explicit, 0)
    assert (known["activation"], known["grid"]) == ("gelu", [8, 4])
    assert first.identity() == renamed.identity() == explicit.identity()
    wide = own_file(tmp_path / "d", {**state, POSITIONS: _positions(16, 8)}, source_grid=(16, 8))
    tall = wide.model_copy(update={"source_grid": (8, 16)})
    assert weights_identity(store, wide, 0) != weights_identity(store, tall, 0)
    assert (
        weights_identity(store, BackboneConfig(weights="random", activation="quick_gelu"), 0)["activation"]
        == "quick_gelu"
    )
