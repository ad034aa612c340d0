"""Loading and running LLaVA: the real transformers classes on a model with random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from captioning.config import CaptionConfig
from captioning.engines.llava import Engine, Reply
from captioning.engines.llava_load import load_llava
from captioning.reading import Loaded
from data.errors import ClipScgiError, ConfigError, WeightsError
from tests.helpers.mini_llava import PATCH, SIDE, save_mini_llava


@pytest.fixture(scope="module")
def mini(module_folder):
    return save_mini_llava(module_folder("mini") / "llava")


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8)) for _ in range(8)]


def config(folder, **changes) -> CaptionConfig:
    return CaptionConfig(**{"model": str(folder), "dtype": "float32", "max_new_tokens": 12, "device": "cpu"} | changes)


def captions(engine: Engine, people) -> list[Reply]:
    return engine.reply([engine.prepare(person) for person in people])


# Loading


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"folder .*nowhere does not exist.*model\*.safetensors"):
        load_llava(config(tmp_path / "nowhere"))


def test_every_missing_file_is_named_at_once(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError) as caught:
        load_llava(config(tmp_path))
    for wanted in ("tokenizer.json", "processor_config.json", "model.safetensors", "pytorch_model.bin is pickle"):
        assert wanted in str(caught.value)


def test_a_missing_shard_is_named(mini, tmp_path):
    folder = shutil.copytree(mini, tmp_path / "sharded")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(WeightsError, match=r"missing model-00002-of-00002\.safetensors$"):
        load_llava(config(folder))


def test_damaged_weights_are_a_clear_error(mini, tmp_path):
    folder = shutil.copytree(mini, tmp_path / "damaged")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors is cut off \(427916 of 855832 bytes\)"):
        load_llava(config(folder))


def test_another_kind_of_model_is_refused(mini, tmp_path):
    folder = shutil.copytree(mini, tmp_path / "other")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "vipllava"}))
    with pytest.raises(WeightsError, match=r"'vipllava'; expected llava, llava_next.* a server can run any model"):
        load_llava(config(folder))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("offline", [True, False], ids=["offline", "unreachable"])
def test_the_error_for_an_unavailable_hub_id_gives_the_remedy(monkeypatch, tmp_path, offline):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load_llava(config("llava-hf/llava-1.5-7b-hf", revision="abc"))
    for wanted in (
        "llava-hf/llava-1.5-7b-hf",
        "revision abc",
        "hf download llava-hf/llava-1.5-7b-hf --revision abc`",
        "model*.safetensors",
        "tiny",
    ):
        assert wanted in str(caught.value)


def test_a_device_that_does_not_exist(mini):
    with pytest.raises(ConfigError, match=r"caption\.device=cuda:97"):
        load_llava(config(mini, device="cuda:97"))


def test_the_processor_takes_the_models_settings(mini):
    assert AutoProcessor.from_pretrained(mini).patch_size is None
    llava = load_llava(config(mini))
    processor = llava.processor
    assert (processor.patch_size, processor.vision_feature_select_strategy) == (PATCH, "default")
    assert processor.num_additional_image_tokens == 1
    assert llava.family.image_tokens == (SIDE // PATCH) ** 2
    # The processor's own expansion of <image> agrees with the engine's.
    prompt = CaptionConfig().prompt_template.prompt()
    expanded = processor(text=prompt, images=Image.new("RGB", (SIDE, SIDE)), return_tensors="pt").input_ids
    assert torch.equal(expanded, Engine(llava, config(mini)).prompt_1L)


# Generation


def test_text_is_what_transformers_generates_one_at_a_time(mini, people):
    engine = Engine.load(config(mini))
    model = LlavaForConditionalGeneration.from_pretrained(mini)
    processor = engine.llava.processor
    prompt = engine.config.prompt_template.prompt()
    for person, reply in zip(people, captions(engine, people), strict=True):
        inputs = processor(text=prompt, images=engine.prepare(person), return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, temperature=None, top_p=None, max_new_tokens=12)
        assert reply.text == processor.tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert len({reply.text for reply in captions(engine, people)}) > 1


def test_text_does_not_depend_on_the_batch(mini, people):
    engine = Engine.load(config(mini))
    together = captions(engine, people)
    assert together == [captions(engine, [person])[0] for person in people]
    assert together[::-1] == captions(engine, people[::-1])


def test_no_end_within_the_limit_is_truncated(mini, people):
    replies = captions(Engine.load(config(mini, max_new_tokens=3)), people)
    assert all(reply.truncated and reply.n_tokens == 3 for reply in replies)


def test_the_end_token_ends_and_is_not_counted(mini):
    engine = Engine.load(config(mini))
    end = engine.llava.model.generation_config.eos_token_id
    word = engine.llava.processor.tokenizer.encode(" woman", add_special_tokens=False)
    reply = engine._decoded([*word, end, end])
    assert reply == Reply(text=" woman", n_tokens=len(word), truncated=False)


def test_prompt_and_reply_must_fit_the_model(mini):
    with pytest.raises(ConfigError, match="room for 1024"):
        Engine.load(config(mini, max_new_tokens=1000))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(mini, people, dtype):
    engine = Engine.load(config(mini, dtype=dtype))
    assert engine.llava.model.dtype == getattr(torch, dtype)
    assert len(captions(engine, people[:2])) == 2


@pytest.mark.parametrize(("quantization", "layer"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_quantized_on_the_cpu(mini, people, quantization, layer):
    engine = Engine.load(config(mini, quantization=quantization))
    kinds = {name: type(module).__name__ for name, module in engine.llava.model.named_modules()}
    text = {kind for name, kind in kinds.items() if "language_model" in name and name.endswith("_proj")}
    rest = {kind for name, kind in kinds.items() if ("vision_tower" in name or "projector" in name) and "Lin" in kind}
    assert text == {layer}
    assert rest == {"Linear"}
    assert len(captions(engine, people[:3])) == 3


# Batches


def loaded(people) -> list[Loaded]:
    return [Loaded(sha256=f"{i:064d}", image=person, reason=None) for i, person in enumerate(people)]


def test_rows_keep_their_order_and_unreadable_images_their_reason(mini, people):
    engine = Engine.load(config(mini, batch_size=3))
    images = [Loaded(sha256=item.sha256, image=engine.prepare(item.image), reason=None) for item in loaded(people)]
    images[4] = Loaded(sha256=images[4].sha256, image=None, reason="truncated")
    rows = [row for batch in engine.rows(images) for row in batch]
    assert [row.image_sha256 for row in rows] == [item.sha256 for item in images]
    assert (rows[4].status, rows[4].error) == ("image_error", "truncated")
    assert [row.reply and row.reply.batch_size for row in rows] == [3, 3, 3, 2, None, 2, 2, 2]
    # The replies of a random model, and their ends, are arbitrary; only the unreadable image is certain.
    assert [row.status == "image_error" for row in rows] == [i == 4 for i in range(8)]


def test_out_of_memory_halves_the_batch_for_the_rest_of_the_run(mini, people, monkeypatch):
    engine = Engine.load(config(mini, batch_size=8))
    sizes = []

    def small_device(images, seeds):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("no memory")
        return [Reply(text="", n_tokens=0, truncated=False) for _ in images]

    monkeypatch.setattr(engine, "reply", small_device)
    rows = [row for batch in engine.rows(loaded(people)) for row in batch]
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert [row.reply.batch_size for row in rows] == [2] * 8


def test_the_error_for_out_of_memory_with_one_image_gives_the_remedy(mini, people, monkeypatch):
    engine = Engine.load(config(mini, batch_size=1))

    def no_device(images, seeds):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(engine, "reply", no_device)
    with pytest.raises(ClipScgiError, match="4bit"):
        list(engine.rows(loaded(people)))
