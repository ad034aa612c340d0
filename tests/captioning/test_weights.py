"""Model folders of all kinds: either the whole model is loaded, or one message says what is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from captioning.captioner import REQUIRED_FILES, TINY_FOLDER, identify
from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from captioning.engines.llava_load import load_llava, quantization_settings
from captioning.stage import worker as stage_work
from captioning.stage.stage import CaptionStage
from data.artifacts.digests import DigestMemo
from data.artifacts.store import ArtifactStore
from data.errors import ClipScgiError, ConfigError, WeightsError
from tests.helpers.caption_worlds import captions_of, draw, index
from tests.helpers.mini_llava import save_mini_llava
from tests.helpers.stages import caption, run_on

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"
UP = "language_model.model.layers.1.mlp.up_proj.weight"
FC = "vision_tower.encoder.layers.0.mlp.fc1.weight"
POSITIONS = "vision_tower.embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def mini(module_folder):
    return save_mini_llava(module_folder("mini") / "llava")


@pytest.fixture
def folder(mini, tmp_path):
    return shutil.copytree(mini, tmp_path / "llava")


def config(folder, **changes) -> CaptionConfig:
    return CaptionConfig(**{"model": str(folder), "dtype": "float32", "max_new_tokens": 6, "device": "cpu"} | changes)


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder, change) -> None:
    """Replace the tensors of the folder with the result of `change`."""
    tensors = change(load_file(folder / "model.safetensors"))
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(*parts):
    return lambda tensors: {name: v for name, v in tensors.items() if not any(part in name for part in parts)}


def renamed(*pairs):
    def change(tensors):
        made = {}
        for name, value in tensors.items():
            for old, new in pairs:
                if name.startswith(old):
                    name = new + name.removeprefix(old)  # noqa: PLW2901
                    break
            made[name] = value
        return made

    return change


def refused(folder, **changes) -> str:
    with pytest.raises(ClipScgiError) as caught:
        Engine.load(config(folder, **changes))
    message = str(caught.value)
    assert isinstance(caught.value, WeightsError), message
    assert str(folder) in message
    assert "delete" not in message.lower()
    return message


def state(folder, **changes) -> dict[str, torch.Tensor]:
    return load_llava(config(folder, **changes)).model.state_dict()


# Every tensor comes from the folder

NEW_NAMES = renamed(
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head", "lm_head"),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
ORIGINAL_NAMES = renamed(
    ("language_model.model.", "model."),
    ("language_model.lm_head", "lm_head"),
    ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("multi_modal_projector.linear_1", "model.mm_projector.0"),
    ("multi_modal_projector.linear_2", "model.mm_projector.2"),
)


def tie(content):
    content["text_config"]["tie_word_embeddings"] = True
    content["tie_word_embeddings"] = True


def tie_text_only(content):
    content["text_config"]["tie_word_embeddings"] = True
    content.pop("tie_word_embeddings")


def text(key, value):
    return lambda content: content["text_config"].__setitem__(key, value)


def vision(key, value):
    return lambda content: content["vision_config"].__setitem__(key, value)


UNFIT = {
    "no_vision_tower": (without("vision_tower"), None, ["missing 39 tensors", "vision_tower", "and 36 more"]),
    "no_projector": (without("multi_modal"), None, ["missing 4 tensors", "multi_modal_projector.linear_1.bias"]),
    "no_language_model": (without("language_model"), None, ["missing 21 tensors"]),
    "no_head": (without("lm_head"), None, ["missing 1 tensor: lm_head.weight"]),
    "no_head_no_embeddings_tied": (without("lm_head", "embed_tokens"), tie, ["missing 2 tensors", "lm_head.weight"]),
    "one_layer_missing": (without("layers.1.mlp.up_proj"), None, ["missing 1 tensor", "layers.1.mlp.up_proj.weight"]),
    "one_bias_missing": (without("class_embedding"), None, ["missing 1 tensor", "embeddings.class_embedding"]),
    "layers_the_config_has_not": (None, text("num_hidden_layers", 1), ["unexpected 9 tensors", "layers.1."]),
    "layers_the_file_has_not": (None, text("num_hidden_layers", 3), ["missing 9 tensors", "layers.2."]),
    "tower_layers_the_file_has_not": (None, vision("num_hidden_layers", 3), ["missing 16 tensors", "layers.2."]),
    "vocabulary": (
        None,
        text("vocab_size", 384),
        ["lm_head.weight is [320, 64] and should be [384, 64]", "embed_tokens"],
    ),
    "width": (
        None,
        text("intermediate_size", 96),
        ["mlp.down_proj.weight is [64, 128] and should be [64, 96]", "3 more"],
    ),
    "image_size": (None, vision("image_size", 64), ["position_embedding.weight is [17, 64] and should be [65, 64]"]),
    "patch_size": (None, vision("patch_size", 16), ["patch_embedding.weight"]),
    "transposed": (lambda t: t | {UP: t[UP].T}, None, ["up_proj.weight is [64, 128] and should be [128, 64]"]),
    "peft": (renamed(("", "base_model.model.")), None, ["missing 64", "unexpected 64", "merge_and_unload"]),
    "lora": (lambda t: t | {f"{UP}.lora_A": torch.ones(2)}, None, ["unexpected 1 tensor", "names of PEFT"]),
    "original_repository": (ORIGINAL_NAMES, None, ["missing 63", "original LLaVA repository", "llava-hf/"]),
    "an_unknown_tensor": (lambda t: t | {"adapter.scale": torch.ones(2)}, None, ["unexpected 1 tensor: adapter.scale"]),
    "both_names": (lambda t: NEW_NAMES(t) | t, None, ["under an older and a newer name", "and 61 more"]),
    "another_model": (lambda _: {"x": torch.ones(1)}, None, ["missing 64 tensors", "unexpected 1 tensor: x"]),
    "no_tensors": (lambda _: {}, None, ["do not contain any tensors"]),
}


@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_nothing_random_is_loaded(folder, case, quantization):
    change, settings, expected = UNFIT[case]
    if change is not None:
        rewrite(folder, change)
    if settings is not None:
        edit(folder / "config.json", settings)
    message = refused(folder, quantization=quantization)
    for part in expected:
        assert part in message
    assert len(message) < 1200


def test_one_message_contains_everything(folder, capfd):
    rewrite(folder, without("vision_tower"))
    capfd.readouterr()
    refused(folder)
    assert capfd.readouterr() == ("", "")


def test_a_huge_model_without_its_weights_is_refused_at_once(folder):
    def large(content):
        content["text_config"] |= {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        content["text_config"] |= {"vocab_size": 32064, "num_attention_heads": 32, "num_key_value_heads": 32}

    edit(folder / "config.json", large)  # 13 GB in bfloat16, which must not be allocated first
    assert "missing 270 tensors" in refused(folder, dtype="bfloat16")


FIT = {
    "as_saved": (None, None),
    "new_names": (NEW_NAMES, None),
    "the_hubs_old_names": (renamed(("vision_tower.", "vision_tower.vision_model.")), None),
    "without_the_outer_prefix": (lambda t: {n.removeprefix("model."): v for n, v in NEW_NAMES(t).items()}, None),
    "position_ids": (
        lambda t: t | {"vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]},
        None,
    ),
    "rotary_frequencies": (
        lambda t: t | {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)},
        None,
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_names_of_every_version_load_the_same_tensors(mini, folder, case):
    change, settings = FIT[case]
    if change is not None:
        rewrite(folder, change)
    if settings is not None:
        edit(folder / "config.json", settings)
    wanted, loaded = state(mini), state(folder)
    assert wanted.keys() == loaded.keys()
    assert all(torch.equal(wanted[name], loaded[name]) for name in wanted)


@pytest.mark.parametrize("kept", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("how", [tie, tie_text_only])
def test_a_tied_model_loads_from_either_of_its_two_names(folder, kept, how):
    stored = load_file(folder / "model.safetensors")
    value = next(value for name, value in stored.items() if kept in name)
    rewrite(folder, without("embed_tokens" if kept == "lm_head" else "lm_head"))
    edit(folder / "config.json", how)
    loaded = state(folder)
    assert torch.equal(loaded["lm_head.weight"], value)
    assert torch.equal(loaded["model.language_model.embed_tokens.weight"], value)


def test_loading_leaves_the_random_state_and_draws_nothing_from_it(folder):
    rewrite(folder, without("embed_tokens"))  # transformers initializes it before it ties it
    edit(folder / "config.json", tie)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(state(folder))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# Shards


def shard(folder, change=lambda listed: None) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed = {}
    for i, names in enumerate(np.array_split(sorted(tensors), 2), 1):
        name = f"model-{i:05d}-of-00002.safetensors"
        save_file({str(key): tensors[key] for key in names}, folder / name, metadata={"format": "pt"})
        listed |= dict.fromkeys(map(str, names), name)
    change(listed)
    index = {"metadata": {}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_load_the_same_tensors(mini, folder):
    shard(folder)
    wanted, loaded = state(mini), state(folder)
    assert all(torch.equal(wanted[name], loaded[name]) for name in wanted)


def test_an_index_of_absent_tensors_is_refused(folder):
    shard(folder, lambda listed: listed.__setitem__("language_model.ghost", "model-00001-of-00002.safetensors"))
    assert "not in the shard it names: language_model.ghost" in refused(folder)


def test_a_shard_that_the_index_does_not_name_counts_as_missing(folder):
    def forget(listed):
        for name in [name for name, file in listed.items() if file.startswith("model-00002")]:
            del listed[name]

    shard(folder, forget)
    assert "missing 32 tensors" in refused(folder)


def test_shards_without_an_index_are_named(folder):
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()
    message = refused(folder)
    assert "missing model.safetensors.index.json (it lists the tensors of model-00001-of-00002.safetensors" in message


def test_one_file_beside_shards_is_refused(folder):
    whole = shutil.copy(folder / "model.safetensors", folder.parent / "whole")
    shard(folder)
    shutil.copy(whole, folder / "model.safetensors")
    message = refused(folder)
    assert f"{folder / 'model.safetensors'} and the shards of" in message
    assert "are two sets of weights" in message
    for path in folder.glob("model-*"):
        path.unlink()
    load_llava(config(folder))  # an index without its shards is ignored


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_shard_or_index_that_is_a_pointer_is_named(folder, name):
    shard(folder)
    (folder / name).write_text(LFS)
    assert f"{folder / name} is a git-LFS pointer" in refused(folder)


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [UP, FC, "language_model.lm_head.weight", "multi_modal_projector.linear_2.bias"])
def test_a_value_that_is_not_finite_is_refused_by_name(folder, name, value):
    rewrite(folder, lambda tensors: tensors | {name: tensors[name].index_fill(0, torch.tensor([1]), value)})
    message = refused(folder)
    assert f"contain NaN or infinity in 1 tensor: {name}" in message
    assert "learning" not in message


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_nan_is_found_before_it_is_quantized(folder, quantization):
    rewrite(folder, lambda tensors: tensors | {UP: tensors[UP].index_fill(0, torch.tensor([1]), float("nan"))})
    assert f"contain NaN or infinity in 1 tensor: {UP}" in refused(folder, quantization=quantization)


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_a_weight_of_zeros_is_refused_and_a_bias_of_zeros_is_not(folder, quantization):
    rewrite(folder, lambda tensors: tensors | {FC.replace("weight", "bias"): torch.zeros(128)})
    load_llava(config(folder, quantization=quantization))
    rewrite(folder, lambda tensors: tensors | {UP: torch.zeros(128, 64), FC: torch.zeros(128, 64)})
    message = refused(folder, quantization=quantization)
    assert "are all zeros in 2 tensors" in message
    assert "layers.1.mlp.up_proj" in message
    assert "download was probably interrupted" in message


def test_a_norm_of_zeros_is_refused_too(folder):
    """A file whose last kilobytes were not downloaded."""
    rewrite(folder, lambda tensors: tensors | {"vision_tower.post_layernorm.weight": torch.zeros(64)})
    message = refused(folder)
    assert "are all zeros in 1 tensor: model.vision_tower.post_layernorm.weight" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_integers_are_not_accepted_as_weights(folder, dtype):
    rewrite(folder, lambda tensors: tensors | {UP: (tensors[UP] * 100).to(dtype)})
    assert "store integers in place of 1 tensor: " + UP in refused(folder)


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_weights_that_overflow_in_float16_are_refused_and_load_in_bfloat16(folder, quantization):
    rewrite(folder, lambda tensors: tensors | {UP: tensors[UP].index_fill(0, torch.tensor([1]), 1e5)})
    message = refused(folder, dtype="float16", quantization=quantization)
    assert "layers.1.mlp.up_proj.weight" in message
    assert "overflow in float16" in message
    assert "caption.dtype=bfloat16" in message
    load_llava(config(folder, dtype="bfloat16", quantization=quantization))


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("bfloat16", "caption.dtype=float32"), ("float32", "another checkpoint")]
)
def test_the_remedy_of_an_overflow_is_a_wider_format(folder, dtype, remedy):
    rewrite(
        folder, lambda t: t | {UP: t[UP].double().index_fill(0, torch.tensor([1]), 3.4e38 if "b" in dtype else 1e300)}
    )
    message = refused(folder, dtype=dtype)
    assert f"overflow in {dtype}" in message
    assert message.endswith(remedy)


def test_activations_that_overflow_are_refused_before_anything_is_captioned(folder):
    def grow(tensors):
        return {name: value * (3e4 if "norm" in name and "language" in name else 1) for name, value in tensors.items()}

    rewrite(folder, grow)
    message = refused(folder, dtype="float16")
    assert "computes NaN or infinity in float16, although its weights are finite" in message


# Files that are not what their names say

JSON = ("config.json", "tokenizer.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
DAMAGE = {
    "git_lfs": (lambda _: LFS, "is a git-LFS pointer, not the file itself: run `git lfs pull`"),
    "html": (lambda _: "<!DOCTYPE html><html>Sign in</html>", "is an HTML page"),
    "empty": (lambda _: "", "is empty"),
    "cut": (lambda content: content[: len(content) // 2], "is cut off after"),
    "garbage": (lambda content: content.replace(":", "=", 1), "is not valid JSON"),
    "list": (lambda content: f"[{content}]", "holds a JSON list; expected an object"),
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_json_is_named(folder, name, damage):
    change, expected = DAMAGE[damage]
    path = folder / name
    path.write_text(change(path.read_text()))
    message = refused(folder)
    assert message.startswith(f"{path} {expected}")


@pytest.mark.parametrize("damage", ["git_lfs", "html", "empty"])
@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja"])
def test_weights_and_chat_templates_with_other_content_are_named(folder, name, damage):
    change, expected = DAMAGE[damage]
    (folder / name).write_text(change(""))
    assert refused(folder).startswith(f"{folder / name} {expected}")


def test_dead_links_are_named(folder):
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).unlink()
        (folder / name).symlink_to(f"../../blobs/{name}")
    message = refused(folder)
    for name in ("tokenizer.json", "model.safetensors"):
        assert f"{name} (it is a link to ../../blobs/{name}, which does not exist)" in message


def test_an_invalid_tokenizer_is_named(folder):
    edit(folder / "tokenizer.json", lambda content: content.pop("model"))
    assert "cannot be loaded" in refused(folder)


def without_key(*keys):
    def change(content):
        for key in keys:
            content.pop(key)

    return change


def put(**values):
    return lambda content: content.update(values)


SETTINGS = {
    "no_text_config": ("config.json", without_key("text_config"), "text_config is missing"),
    "no_parts": ("config.json", without_key("text_config", "vision_config"), "2 problems"),
    "text_config_is_null": ("config.json", put(text_config=None), "text_config must be an object, not None"),
    "other_weights_file": ("config.json", put(transformers_weights="../x.safetensors"), "transformers_weights names"),
    "llava_next": ("config.json", put(model_type="llava_next"), "missing 1 tensor: model.image_newline"),
    "vipllava": ("config.json", put(model_type="vipllava"), "model_type is 'vipllava'; expected llava, llava_next, "),
    "pixtral": (
        "config.json",
        lambda c: c["vision_config"].update(model_type="pixtral"),
        "vision_config.model_type is 'pixtral'; expected clip_vision_model, siglip_vision_model, dpt. Otherwise, a ser",
    ),
    "gemma": (
        "config.json",
        lambda c: c["text_config"].update(model_type="gemma2"),
        "text_config.model_type is 'gemma2'; expected llama, mistral, qwen2. Otherwise, a server can run any model",
    ),
    "original_type": ("config.json", put(model_type="llava_llama"), "llava_llama"),
    "no_type": ("config.json", without_key("model_type"), "model_type is None"),
    "image_token_of_another_word": (
        "config.json",
        put(image_token_index=7),
        "<image> is token 3 in tokenizer.json, but 7",
    ),
    "image_token_beyond": ("config.json", put(image_token_index=32000), "the weights embed 320 tokens (0 to 319)"),
    "feature_layer_beyond": ("config.json", put(vision_feature_layer=-9), "cannot be loaded"),
    "feature_layers": (
        "config.json",
        put(vision_feature_layer=[-1, -2]),
        "linear_1.weight is [64, 64] and should be [64, 128]",
    ),
    "feature_strategy": ("config.json", put(vision_feature_select_strategy="some"), "cannot be loaded"),
    "end_beyond": ("generation_config.json", put(eos_token_id=32000), "the end token 32000 is beyond the 320 tokens"),
    "one_of_two_ends_beyond": ("generation_config.json", put(eos_token_id=[2, 999]), "the end token 999 is beyond"),
    "another_processor": ("processor_config.json", put(processor_class="Blip2Processor"), "Blip2Processor"),
    "no_mean": ("processor_config.json", lambda c: c["image_processor"].pop("image_mean"), "must give image_mean"),
    "odd_mean": (
        "processor_config.json",
        lambda c: c["image_processor"].update(image_mean=[0.5]),
        "must give image_mean",
    ),
    "true_for_a_mean": (
        "processor_config.json",
        lambda c: c["image_processor"].update(image_mean=[True, 0, 0]),
        "must give image_mean",
    ),
    "deviation_of_zero": (
        "processor_config.json",
        lambda c: c["image_processor"].update(image_std=[0.2, 0.2, 0]),
        "must give image_mean and image_std",
    ),
    "pixels_of_255": (
        "processor_config.json",
        lambda c: c["image_processor"].update(do_rescale=False),
        "normalizes black to -1.675 and white to 948.3",
    ),
    "mean_of_255": (
        "processor_config.json",
        lambda c: c["image_processor"].update(image_mean=[123.7, 116.3, 103.5], image_std=[58.4, 57.1, 57.4]),
        "(CLIP: -1.675 and 2.05), which fits no model: check do_rescale, rescale_factor,",
    ),
    "end_is_text": (
        "generation_config.json",
        put(eos_token_id="2"),
        "eos_token_id must be a token id or a list of them",
    ),
    "end_is_true": ("generation_config.json", put(eos_token_id=True), "of them, not True"),
    "unknown_image_processor": (
        "processor_config.json",
        lambda c: c["image_processor"].update(image_processor_type="NoImageProcessor"),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_of_the_folder_that_do_not_fit_are_named(folder, case):
    name, change, expected = SETTINGS[case]
    edit(folder / name, change)
    assert expected in refused(folder)


def test_a_tokenizer_that_does_not_know_the_image_token(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<image>", "<photo>"))
    message = refused(folder)
    assert "<image> is token" in message
    assert "in tokenizer.json, but 3 in config.json (image_token_index)" in message


@pytest.mark.parametrize("decoding", ["free", "slots"])
def test_a_tokenizer_larger_than_the_embedding(folder, decoding):
    """Tokens of the prompt beyond the rows of the weights: on a GPU a device assert, on a CPU an IndexError."""

    def shift(content):
        vocabulary = content["model"]["vocab"]
        for word in [word for word, token in vocabulary.items() if token >= 300]:
            vocabulary[word] += 1000

    edit(folder / "tokenizer.json", shift)
    message = refused(folder, decoding=decoding, **({"max_new_tokens": None} if decoding == "slots" else {}))
    assert "the weights embed 320 tokens (0 to 319)" in message
    assert "tokenizer.json" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_not_a_model(folder, name):
    """Not even next to a whole model: transformers would silently ignore it."""
    (folder / name).write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    assert f"PEFT adapter ({name}), not a complete model" in refused(folder)


@pytest.mark.parametrize("nested", [True, False], ids=["newer_file_is_read", "older_file_is_read"])
def test_a_mean_in_the_file_that_is_not_read_is_ignored(folder, nested):
    """transformers reads the settings nested in processor_config.json, else preprocessor_config.json, else defaults."""
    content = json.loads((folder / "processor_config.json").read_text())
    settings = content.pop("image_processor")
    mean = {name: settings.pop(name) for name in ("image_mean", "image_std")}
    newer, older = (settings, settings | mean) if nested else (None, settings)
    content |= {"image_processor": newer} if nested else mean
    (folder / "processor_config.json").write_text(json.dumps(content))
    (folder / "preprocessor_config.json").write_text(json.dumps(older))
    read = "processor_config.json" if nested else "preprocessor_config.json"
    assert f"{folder / read} must give image_mean and image_std" in refused(folder)


ASKED = {
    "penalty": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "exponential_decay_length_penalty": [1, 5.0]},
    "suppressed": {"suppress_tokens": list(range(10, 200)), "begin_suppress_tokens": list(range(5, 250))},
    "forced": {"forced_bos_token_id": 9, "forced_eos_token_id": 9, "sequence_bias": [[[50], 100.0]]},
    "bad_words": {"bad_words_ids": [[token] for token in range(10, 200)]},
    "several": {"num_return_sequences": 2, "num_beams": 4},
    "guidance": {"guidance_scale": 2.0},
    "watermark": {"watermarking_config": {"bias": 9.0, "hashing_key": 3, "seeding_scheme": "lefthash"}},
    "time": {"max_time": 1e-9},
    "stop": {"stop_strings": ["a"]},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "length": {"max_length": 2, "max_new_tokens": 1, "min_new_tokens": 20},
    "output": {"return_dict_in_generate": True, "output_scores": True},
}


@pytest.mark.parametrize("case", ASKED)
@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_other_generation_settings_of_the_folder_do_not_change_a_reply(mini, folder, case, where):
    if where == "config.json":  # as in older models
        (folder / "generation_config.json").unlink()
    edit(folder / where, put(**ASKED[case]))
    assert replies(Engine.load(config(folder, max_new_tokens=24))) == replies(
        Engine.load(config(mini, max_new_tokens=24))
    )


def test_code_of_the_folder_is_never_run(folder, tmp_path):
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass P: pass\n")
    edit(folder / "processor_config.json", put(auto_map={"AutoProcessor": "own.P"}))
    edit(folder / "config.json", put(auto_map={"AutoConfig": "own.P"}))
    edit(folder / "tokenizer_config.json", put(auto_map={"AutoTokenizer": [None, "own.P"]}))
    load_llava(config(folder))
    assert not (tmp_path / "ran").exists()


# The list of needed files is complete


def replies(engine) -> tuple[list[int], list[str]]:
    rng = np.random.default_rng(3)
    people = [Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8)) for _ in range(3)]
    return engine.prompt_1L[0].tolist(), [reply.text for reply in engine.reply([engine.prepare(p) for p in people])]


def only(source, folder, names):
    folder.mkdir()
    for name in names:
        for path in source.glob(name):
            shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("source", ["mini", "tiny"])
@pytest.mark.parametrize("processor", ["processor_config.json", "preprocessor_config.json"])
def test_exactly_the_needed_files_load_and_caption_the_same(mini, tmp_path, source, processor):
    source = mini if source == "mini" else TINY_FOLDER
    folder = only(source, tmp_path / "wanted", REQUIRED_FILES)
    if processor == "preprocessor_config.json":
        content = json.loads((folder / "processor_config.json").read_text())
        (folder / "processor_config.json").unlink()
        (folder / processor).write_text(json.dumps(content["image_processor"]))
    assert len(list(folder.iterdir())) == 4
    assert replies(Engine.load(config(folder))) == replies(Engine.load(config(source)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_each_of_the_needed_files_is_needed(folder, name):
    (folder / name).unlink()
    assert f"no usable LLaVA model in {folder}: missing {name}" in refused(folder)


def test_a_processor_of_another_size_changes_nothing(mini, folder):
    """The engine frames images to the input size of the vision tower, whatever the processor would do."""

    def larger(content):
        content["image_processor"] |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}

    edit(folder / "processor_config.json", larger)
    assert replies(Engine.load(config(folder))) == replies(Engine.load(config(mini)))


# The captions record what was loaded


@pytest.fixture(scope="module")
def quantized(mini, module_folder):
    """Return a function: "4bit" or "8bit" -> a folder with the mini LLaVA, quantized."""
    made = {}

    def make(quantization):
        if quantization not in made:
            folder = shutil.copytree(mini, module_folder("quantized") / quantization)
            settings = quantization_settings(mini, quantization, torch.float32)
            model = LlavaForConditionalGeneration.from_pretrained(
                mini, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=settings
            )
            model.save_pretrained(folder)
            made[quantization] = folder
        return made[quantization]

    return make


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_folder_loads_under_its_own_name_only(quantized, mini, quantization):
    folder = quantized(quantization)
    memo = DigestMemo(folder.parent / "memo.sqlite")
    for other in {"none", "4bit", "8bit"} - {quantization}:
        for call in (load_llava, lambda settings: identify(settings, memo)):
            with pytest.raises(ConfigError, match=rf"set caption\.quantization={quantization}"):
                call(config(folder, quantization=other))
    assert identify(config(folder, quantization=quantization), memo).ingredients["quantization"] == quantization
    loaded, fresh = state(folder, quantization=quantization), state(mini, quantization=quantization)
    assert loaded.keys() == fresh.keys()
    assert all(torch.equal(loaded[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize(
    ("quantization", "change", "expected"),
    [
        ("4bit", without("vision_tower.embeddings"), "missing 3 tensors"),
        ("4bit", without("layers.1.mlp.up_proj"), "missing 1 tensor"),
        ("4bit", without("layers.1.mlp.up_proj.weight.absmax"), "up_proj.weight is [4096, 1] and should be [128, 64]"),
        ("4bit", without("layers.1.mlp.up_proj.weight.quant_state"), "cannot be loaded"),
        ("8bit", without("layers.1.mlp.up_proj.SCB"), "cannot be loaded"),
        ("8bit", without("lm_head"), "missing 1 tensor"),
        ("4bit", lambda t: t | {f"{UP}.absmax": t[f"{UP}.absmax"] * torch.nan}, f"infinity in 1 tensor: {UP}.absmax"),
        ("8bit", lambda t: t | {UP.replace("weight", "SCB"): torch.full((128,), torch.inf)}, "NaN or infinity in 1"),
    ],
    ids=["tower", "layer", "absmax", "quant_state", "scb", "head", "nan", "infinity"],
)
def test_a_quantized_folder_is_checked_too(quantized, tmp_path, quantization, change, expected):
    folder = shutil.copytree(quantized(quantization), tmp_path / "llava")
    rewrite(folder, change)
    assert expected in refused(folder, quantization=quantization)


def test_a_quantized_layer_of_another_shape_is_refused(quantized, tmp_path):
    folder = shutil.copytree(quantized("4bit"), tmp_path / "llava")
    edit(folder / "config.json", text("intermediate_size", 96))
    message = refused(folder, quantization="4bit")
    assert "mlp.up_proj.weight is [128, 64] and should be [96, 64]" in message


def test_a_quantized_folder_of_another_dtype_is_refused(quantized, tmp_path):
    folder = shutil.copytree(quantized("4bit"), tmp_path / "llava")
    edit(folder / "config.json", lambda c: c["quantization_config"].update(bnb_4bit_compute_dtype="float16"))
    message = refused(folder, quantization="4bit")
    assert "dtype is float16 and float32, caption.dtype float32" in message


def test_other_quantization_is_refused_with_a_remedy(folder):
    edit(folder / "config.json", put(quantization_config={"quant_method": "gptq", "bits": 4}))
    with pytest.raises(ConfigError, match=r"quantized by gptq .* not supported: use the unquantized model"):
        load_llava(config(folder))


def test_a_folder_does_not_accept_a_revision(folder, tmp_path):
    settings = config(folder, revision="v1.5")
    for call in (load_llava, lambda settings: identify(settings, DigestMemo(tmp_path / "memo.sqlite"))):
        with pytest.raises(
            ConfigError, match=r"caption\.revision=v1\.5 applies to hub ids; .* set caption\.revision=null"
        ):
            call(settings)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_settings_decide_the_dtype_whatever_the_folder_says(folder, dtype):
    def other(content):
        content["dtype"] = "float16"
        content["text_config"]["dtype"] = "bfloat16"
        content["vision_config"]["torch_dtype"] = "float32"

    edit(folder / "config.json", other)
    loaded = load_llava(config(folder, dtype=dtype)).model
    assert {value.dtype for value in loaded.parameters()} == {getattr(torch, dtype)}


def test_a_model_that_keeps_a_part_in_another_dtype_is_refused(folder, monkeypatch):
    monkeypatch.setattr(LlavaForConditionalGeneration, "_keep_in_fp32_modules_strict", {"lm_head"})
    message = refused(folder, dtype="bfloat16")
    assert "dtype is bfloat16 and float32, caption.dtype bfloat16" in message


def test_a_folder_that_changes_while_it_is_loaded_captions_nothing(folder, tmp_path, monkeypatch):
    store, root = ArtifactStore(tmp_path / "home"), draw(tmp_path / "people", 3)
    load = stage_work.load_engine

    def load_and_change(settings):
        engine = load(settings)
        save_mini_llava(folder, seed=1)
        return engine

    monkeypatch.setattr(stage_work, "load_engine", load_and_change)
    with pytest.raises(WeightsError, match=rf"caption\.model={folder} changed while they were loaded"):
        caption(store, images=index(store, root), images_root=root, config=config(folder))
    assert not list(store.root.glob("captions/*/part-*"))


# A model from the hub is recorded by its commit

HUB = "someone/mini-llava"
FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def hub(mini, tmp_path, monkeypatch):
    """A hub cache with two commits of one model; the hub itself cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--someone--mini-llava"
    shutil.copytree(mini, model / "snapshots" / FIRST)
    save_mini_llava(model / "snapshots" / SECOND, seed=1)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(FIRST)
    return model


def hub_config(**changes) -> CaptionConfig:
    return config(HUB, **{"max_new_tokens": 3, "batch_size": 4} | changes)


def captioned(store, root, settings):
    outcome = caption(store, images=index(store, root), images_root=root, config=settings)
    return outcome, captions_of(outcome.made)


def test_a_branch_is_recorded_as_the_commit_that_was_loaded(hub, tmp_path):
    store, root = ArtifactStore(tmp_path / "home"), draw(tmp_path / "people", 3)
    outcome, frame = captioned(store, root, hub_config())
    assert set(frame["model_revision"]) == {FIRST}
    assert set(frame["model_id"]) == {HUB}
    pinned_outcome, _ = captioned(store, root, hub_config(revision=FIRST))
    assert pinned_outcome.made.ref.fingerprint == outcome.made.ref.fingerprint
    assert pinned_outcome.made.cached
    (hub / "refs" / "main").write_text(SECOND)
    moved, frame = captioned(store, root, hub_config())
    assert (moved.generated, set(frame["model_revision"])) == (3, {SECOND})
    assert moved.made.ref.fingerprint != outcome.made.ref.fingerprint


def test_captions_are_found_after_the_weights_are_deleted(hub, tmp_path):
    store, root = ArtifactStore(tmp_path / "home"), draw(tmp_path / "people", 3)
    first, _ = captioned(store, root, hub_config())
    shutil.rmtree(hub)
    again, frame = captioned(store, root, hub_config())
    assert (again.made.cached, set(frame["model_revision"])) == (True, {FIRST})
    plan = CaptionStage(config=hub_config()).plan(run_on(store, index(store, root)))
    assert plan.fingerprint == first.made.ref.fingerprint
    draw(root, 1, start=3)
    with pytest.raises(WeightsError, match=rf"{HUB} \(revision {FIRST}\) are not in this machine's hub cache"):
        captioned(store, root, hub_config())


def test_the_plan_is_made_offline_and_an_unavailable_model_is_refused(hub, tmp_path):
    store, root = ArtifactStore(tmp_path / "home"), draw(tmp_path / "people", 3)
    elsewhere = hub_config(revision="v2")
    stage, run = CaptionStage(config=elsewhere), run_on(store, index(store, root))
    assert stage.ingredients(run)["model"] == [HUB, "v2"]
    with pytest.raises(WeightsError, match=r"revision v2"):
        captioned(store, root, elsewhere)
    assert not (store.root / "captions").exists()


def test_a_snapshot_whose_download_was_interrupted_is_not_used(hub):
    weights = hub / "snapshots" / FIRST / "model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/gone")
    with pytest.raises(WeightsError, match=r"not in this machine's hub cache and cannot be downloaded"):
        load_llava(hub_config())


# Fingerprints of ordinary cases are frozen


@pytest.mark.parametrize(
    ("settings", "fingerprint"),
    [
        ({}, "d4e32577bdb340f0114a2d85cdd7958e"),
        ({"decoding": "slots"}, "ec3263941b110e672b198d2bac880eb7"),
        ({"model": "llava-hf/llava-1.5-7b-hf"}, "bd99d6a0ec97b4bc5ace1b4d0be2ff7c"),
        (
            {"model": "llava-hf/llava-1.5-7b-hf", "revision": "b" * 40, "quantization": "4bit"},
            "2e218bb4aefeb4a62bdb09d287d6a110",
        ),
        ({"model": "folder", "dtype": "float16"}, "b5bb0225d36b8d6c148d0663b3370e21"),
    ],
    ids=["tiny", "tiny_slots", "hub", "hub_4bit", "folder"],
)
def test_fingerprints_of_captioners_are_frozen(tmp_path, settings, fingerprint):
    """A change here captions every image again: it must be intended, and listed in the changelog."""
    if settings.get("model") == "folder":
        folder = tmp_path / "llava"
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llava"}')
        (folder / "model.safetensors").write_bytes(b"weights")
        settings = settings | {"model": str(folder)}
    assert identify(CaptionConfig(**settings), DigestMemo(tmp_path / "memo.sqlite")).fingerprint == fingerprint
