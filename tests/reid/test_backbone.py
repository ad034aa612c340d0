"""The adapter against open_clip's own calls, at real and full text length; missing and wrong weights."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from data.errors import WeightsError
from reid.config.backbone import BackboneConfig
from reid.models.backbone import Backbone, OpenClipTokenizer, build_backbone, build_clip, load_clip, resize_positions
from reid.models.pretrained import TINY_FOLDER, weights_file, weights_files
from reid.models.prompts import PREFIX
from reid.models.tokens import with_ends

SMALL_RESNET = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}


def _images(count, height=128, width=64):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny():
    return build_backbone(BackboneConfig()).eval()


def test_image_features_equal_open_clips(tiny):
    images = _images(3)
    with torch.no_grad():
        features = tiny.image(images)
        # open_clip's own outputs of the tower: those of the blocks, and the pooled feature.
        steps = tiny.clip.visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
        pooled = tiny.clip.encode_image(images)
    torch.testing.assert_close(features.joint_BD, pooled, rtol=1e-4, atol=1e-5)
    classes = steps["image_intermediates_prefix"]
    torch.testing.assert_close(features.penultimate_BV, classes[-2][:, 0], rtol=1e-4, atol=1e-5)
    last = tiny.clip.visual.ln_post(classes[-1][:, 0])
    torch.testing.assert_close(features.last_BV, last, rtol=1e-4, atol=1e-5)
    assert features.tokens_BLD.shape == (3, 33, tiny.joint_width)


def test_text_at_its_real_length_equals_the_77_tokens(tiny):
    texts = ["A woman.", "an elderly man in a red coat, " * 20, "", "naïve 写真 🙂 <|endoftext|> done"]
    ids, ends = tiny.token_ids(texts)
    full = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
    with torch.no_grad():
        torch.testing.assert_close(tiny.text(texts), tiny.clip.encode_text(full), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tiny.text(texts[:1]), tiny.text(texts)[:1], rtol=1e-4, atol=1e-5)
    assert ids[1, ends[1]] == tiny.tokenizer.end
    assert ends[1] == 76
    assert (ids.argmax(1) == ends).all(), "the end token must be the highest id: open_clip pools there"


def test_a_later_token_cannot_change_an_earlier_one(tiny):
    ids, _ = tiny.token_ids(["a man in a red coat"])
    changed = ids.clone()
    changed[0, 4:] = 7
    with torch.no_grad():
        first, second = (tiny.text_tokens(tiny.embed_ids(x)) for x in (ids, changed))
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 4:], second[:, 4:])


def test_openai_tokenizer_composes_like_the_whole_sentence():
    ours = OpenClipTokenizer()
    whole = SimpleTokenizer()(["A photo of a X person."])[0]
    words = [*ours.words(PREFIX), *ours.words("X"), *ours.words("person.")]
    composed = with_ends(ours, words, 77)
    assert composed == whole[: len(composed)].tolist()
    assert ours.end == max(composed)
    assert len(composed) == 9


def test_vit_b16_has_the_published_shape_and_overlapping_patches():
    shape = open_clip.get_model_config("ViT-B-16-quickgelu")
    shape["vision_cfg"]["layers"] = shape["text_cfg"]["layers"] = 1  # the tokens are what matters here
    shape["text_cfg"]["vocab_size"] = 100
    plain, overlapping = build_clip(shape, 256, 128), build_clip(shape, 256, 128, 12)
    assert plain.visual.positional_embedding.shape == (129, 768)
    assert overlapping.visual.positional_embedding.shape == (211, 768)
    state = {**plain.state_dict(), "visual.positional_embedding": torch.randn(197, 768)}
    for clip in (plain, overlapping):
        load_clip(clip, state, "test")
        with torch.no_grad():
            tokens = Backbone(clip, OpenClipTokenizer(), is_resnet=False).image(_images(1, 256, 128)).tokens_BLD
        assert tokens.shape == (1, len(clip.visual.positional_embedding), 512)


def test_resnet_keeps_stage_4_at_16_x_8_and_pools_like_open_clip():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = build_clip(SMALL_RESNET, 256, 128).eval()
    backbone = Backbone(clip, OpenClipTokenizer(), is_resnet=True)
    images = _images(2, 256, 128)
    with torch.no_grad():
        features = backbone.image(images)
        third = clip.visual.layer3(clip.visual.layer2(clip.visual.layer1(clip.visual.stem(images))))
        fourth = clip.visual.layer4(third)
        pooled = clip.encode_image(images)
    assert fourth.shape[2:] == (16, 8)
    assert features.tokens_BLD.shape == (2, 129, 32)
    torch.testing.assert_close(features.joint_BD, pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.last_BV, fourth.mean((2, 3)))
    assert features.penultimate_BV.shape == (2, backbone.penultimate_width)


def test_positions_are_resized_bilinearly_and_the_class_position_kept():
    positions = np.random.default_rng(0).normal(size=(1 + 14 * 14, 2)).astype(np.float32)
    got = resize_positions(torch.tensor(positions), (16, 8)).numpy()
    np.testing.assert_array_equal(got[0], positions[0])
    grid = positions[1:].reshape(14, 14, 2)
    for row, column in ((0, 0), (7, 3), (15, 7), (9, 6)):
        y, x = (row + 0.5) * 14 / 16 - 0.5, (column + 0.5) * 14 / 8 - 0.5
        y, x = max(y, 0.0), max(x, 0.0)
        top, left = int(y), int(x)
        below, right = min(top + 1, 13), min(left + 1, 13)
        upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
        lower = grid[below, left] * (1 - x + left) + grid[below, right] * (x - left)
        np.testing.assert_allclose(got[1 + row * 8 + column], upper * (1 - y + top) + lower * (y - top), atol=1e-5)


def test_the_tiny_clip_works_at_another_size():
    backbone = build_backbone(BackboneConfig(height=160, width=96))
    with torch.no_grad():
        assert backbone.image(_images(1, 160, 96)).tokens_BLD.shape[1] == 1 + 10 * 6


def test_class_shift_is_added_before_the_positions(tiny):
    images = _images(2)
    shift = torch.randn(2, tiny.last_width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = tiny.image(images, shift).joint_BD
        moved = build_backbone(BackboneConfig()).eval()
        for row in range(2):
            moved.clip.visual.class_embedding.data = tiny.clip.visual.class_embedding + shift[row]
            torch.testing.assert_close(got[row], moved.image(images).joint_BD[row], rtol=1e-4, atol=1e-5)


def test_random_weights_depend_on_the_seed_only_and_keep_the_global_generator():
    config = BackboneConfig(weights="random")
    before = torch.random.get_rng_state()
    first, again, other = (build_backbone(config, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["clip.visual.conv1.weight"], other["clip.visual.conv1.weight"])


def test_missing_openai_weights_name_the_file_and_its_repository(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = BackboneConfig(name="vit_b16", weights="openai", height=256, width=128)
    with pytest.raises(WeightsError) as caught:
        weights_file(config)
    for part in ("open_clip_model.safetensors", "timm/vit_base_patch16_clip_224.openai", "backbone.weights"):
        assert part in str(caught.value)


def test_other_unusable_weights_are_named(tmp_path):
    missing = tmp_path / "none.safetensors"
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        weights_file(BackboneConfig(weights=str(missing)))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((TINY_FOLDER / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"torn\.safetensors is cut off"):
        build_backbone(BackboneConfig(weights=str(torn)))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(WeightsError, match="not an open_clip CLIP"):
        build_backbone(BackboneConfig(weights=str(other)))
    state = load_file(TINY_FOLDER / "model.safetensors")
    state["ln_final.weight"] = torch.zeros(3)
    save_file(state, other)
    with pytest.raises(WeightsError, match=r"does not fit the backbone.*ln_final"):
        build_backbone(BackboneConfig(weights=str(other)))


def test_weights_of_a_user_file_are_used_and_fingerprinted_by_content(tmp_path):
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((TINY_FOLDER / "model.safetensors").read_bytes())
    config = BackboneConfig(weights=str(copy))
    shipped, own = build_backbone(BackboneConfig()).state_dict(), build_backbone(config).state_dict()
    assert all(torch.equal(shipped[name], own[name]) for name in shipped)
    assert config.identity()["weights"] == "file"
    assert copy in weights_files(config)


@pytest.mark.parametrize(
    "values",
    [
        {"weights": "openai"},
        {"name": "vit_b16", "weights": "shipped"},
        {"name": "rn50", "weights": "openai", "stride": 12},
        {"weights": "model.pt"},
    ],
)
def test_impossible_backbones_are_refused(values):
    with pytest.raises(ValidationError):
        BackboneConfig(**values)
