"""Every family of LLaVA: views, prompts, decoding, quantization and files, with small models of the real classes."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from captioning.captioner import identify
from captioning.chat_form import read_chat_form
from captioning.config import CaptionConfig
from captioning.engines.family import Family, tall_grid
from captioning.engines.llava import Engine
from captioning.engines.llava_load import checked_form, load_llava
from captioning.prompts.templates import get_template
from data.artifacts.digests import DigestMemo
from data.artifacts.store import ArtifactStore
from data.errors import ConfigError, WeightsError
from data.process.bounded import bounded
from tests.helpers.caption_worlds import captions_of, draw, index
from tests.helpers.constrained_greedy import assert_plain_constrained_greedy, small_template
from tests.helpers.llava_families import CHAT_ML, GRIDS, PATCH, SIDE, SORTS, save_family
from tests.helpers.stages import caption

TILED = [name for name, sort in SORTS.items() if sort.kind != "llava"]


@pytest.fixture(scope="module")
def made(module_folder):
    """Return a function: the name of a sort, and whether in the older format -> its folder, made once."""
    root = module_folder("families")

    def make(name, *, older=False):
        folder = root / f"{name}{'-older' if older else ''}"
        return folder if folder.exists() else save_family(folder, name, older=older)

    return make


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8)) for _ in range(4)]


def config(folder, **changes) -> CaptionConfig:
    free = {"max_new_tokens": 8} if changes.get("decoding") != "slots" else {}
    return CaptionConfig(**{"model": str(folder), "dtype": "float32", "device": "cpu", **free} | changes)


def conversation(template="scgi"):
    """The messages in the form of transformers' documentation."""
    parts = [{"type": "image"}, {"type": "text", "text": get_template(template).instruction}]
    return [{"role": "user", "content": parts}]


# Loading


@pytest.mark.parametrize("name", SORTS)
def test_both_formats_of_the_hub_load_the_same_tensors(made, name):
    newer, older = (load_llava(config(made(name, older=older))) for older in (False, True))
    wanted, found = newer.model.state_dict(), older.model.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert newer.form.chat_template == older.form.chat_template
    assert newer.family == older.family


@pytest.mark.parametrize("name", ["llava_next_vicuna", "llava_onevision"])
@pytest.mark.parametrize(
    "part", ["image_newline", "multi_modal_projector.linear_2.bias", "layers.1.mlp.up_proj.weight"]
)
def test_a_missing_tensor_is_named(made, tmp_path, name, part):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(made(name, older=True), tmp_path / "llava")
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if part not in key}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=rf"missing 1 tensor: .*{part}"):
        load_llava(config(folder))


def test_the_processor_of_another_family_is_refused(made, tmp_path):
    folder = shutil.copytree(made("llava_next_vicuna"), tmp_path / "llava")
    shutil.copy(made("llava_vicuna") / "processor_config.json", folder)
    with pytest.raises(WeightsError, match="describes a LlavaProcessor; expected a LlavaNextProcessor"):
        load_llava(config(folder))


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize(("quantization", "layer"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_quantized(made, people, name, quantization, layer):
    engine = Engine.load(config(made(name), quantization=quantization))
    kinds = {key: type(module).__name__ for key, module in engine.llava.model.named_modules()}
    text = {kind for key, kind in kinds.items() if "language_model" in key and key.endswith("_proj")}
    rest = {kind for key, kind in kinds.items() if "language_model" not in key and kind.startswith("Linear")}
    assert (text, rest) == ({layer}, {"Linear"})
    assert len(engine.reply([engine.prepare(person) for person in people])) == len(people)


# Views


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("framing", ["pad", "stretch"])
@pytest.mark.parametrize("rows", [slice(0, 4), slice(60, 64)], ids=["head", "feet"])
def test_head_and_feet_reach_every_view_that_shows_them(made, name, framing, rows):
    engine = Engine(load_llava(config(made(name))), config(made(name), framing=framing))
    plain = np.full((64, 32, 3), 120, np.uint8)
    marked = plain.copy()
    marked[rows] = (255, 0, 0)
    before, after = (engine.pixels([engine.prepare(Image.fromarray(image))])[0] for image in (plain, marked))
    views = (after - before).abs().amax(dim=-3).reshape(-1, SIDE, SIDE)
    edge = slice(0, 1) if rows.start == 0 else slice(SIDE - 1, SIDE)
    assert views[0, edge, SIDE // 2].min() > 0.5  # the whole body
    if name in TILED:
        assert len(views) == 3  # the whole body, head to hips, and hips to feet
        ends, other = (1, 2) if rows.start == 0 else (2, 1)
        assert views[ends, edge].min() > 0.5
        assert views[other].max() == 0


@pytest.mark.parametrize("name", SORTS)
def test_each_token_shows_the_part_of_the_image_that_its_box_names(made, name):
    """Paint the part of one token: only the pixels of its patch may change."""
    engine = Engine(load_llava(config(made(name))), config(made(name)))
    family = engine.llava.family
    plain = Image.new("RGB", family.size, (120, 120, 120))
    patches = (SIDE // PATCH) ** 2
    seen = [box for box in family.boxes if box is not None]
    for number in (0, 5, patches - 1, *((patches, patches + 9, 3 * patches - 1) if family.tiled else ())):
        painted = plain.copy()
        painted.paste((255, 0, 0), tuple(map(round, seen[number])))
        changed = (engine.pixels([painted]) - engine.pixels([plain]))[0].abs().amax(dim=-3).reshape(-1, SIDE, SIDE)
        if number < patches:
            place = (0, *divmod(number, SIDE // PATCH))
        else:
            row, column = divmod(number - patches, SIDE // PATCH)
            place = (1 + row // (SIDE // PATCH), row % (SIDE // PATCH), column)
        view, top, left = place[0], place[1] * PATCH, place[2] * PATCH
        inside = changed[view, top : top + PATCH, left : left + PATCH]
        assert inside.mean() > 1
        if view:  # the squeezed view is smoothed
            assert changed[1:].sum() == pytest.approx(float(inside.sum()))


@pytest.mark.parametrize("name", SORTS)
def test_tokens_and_pixels_are_those_of_the_models_own_processor(made, people, name):
    engine = Engine.load(config(made(name)))
    framed = engine.prepare(people[0])
    inputs = engine.llava.processor(text=engine.prompt, images=framed, return_tensors="pt", add_special_tokens=False)
    special = engine.llava.processor(text=engine.prompt, images=framed, return_tensors="pt")
    begins = engine.prompt.startswith(str(engine.llava.processor.tokenizer.bos_token))
    assert torch.equal((inputs if begins else special).input_ids, engine.prompt_1L)
    mine = engine.inputs([framed])
    assert torch.equal(inputs["pixel_values"], mine["pixel_values"])
    if name in TILED:
        assert inputs["image_sizes"].tolist() == mine["image_sizes"].tolist() == [[2 * SIDE, SIDE]]


def test_the_grid_of_tiles_is_tall():
    published = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    assert tall_grid(published, 336) == (336, 672)
    sizes = range(384, 2305, 384)
    assert tall_grid([[height, width] for height in sizes for width in sizes], 384) == (384, 768)
    assert tall_grid([[384, 384]], 384) == (384, 384)
    assert tall_grid([[384, 768], [1152, 384]], 384) == (384, 1152)
    with pytest.raises(WeightsError, match=r"no grid of whole tiles of 336 x 336 pixels"):
        tall_grid([[384, 384]], 336)


def test_many_tiles_are_shrunk_as_in_llava_onevision(made):
    """A grid beyond the limit of anyres_max: the model itself counts the features."""
    model = AutoModelForImageTextToText.from_pretrained(made("llava_onevision"))
    model.config.image_grid_pinpoints = [[6 * SIDE, 3 * SIDE]]
    family = Family.of(model.config)
    assert family.most_tiles == 9
    pixels = torch.zeros(1, 19, 3, SIDE, SIDE)
    features = model.model.get_image_features(pixels, torch.tensor([[6 * SIDE, 3 * SIDE]])).pooler_output
    assert len(features[0]) == family.image_tokens


def test_settings_of_the_processor_do_not_change_the_views(made, people, tmp_path):
    folder = shutil.copytree(made("llava_next_vicuna"), tmp_path / "llava")
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    content["image_processor"]["image_grid_pinpoints"] = GRIDS[:1]
    path.write_text(json.dumps(content))
    found, wanted = (Engine.load(config(place)) for place in (folder, made("llava_next_vicuna")))
    framed = [wanted.prepare(person) for person in people]
    assert found.reply(framed) == wanted.reply(framed)


# Compiled


def assert_compiled_writes_the_same(folder, people, decoding):
    plain = config(folder, decoding=decoding, batch_size=3)
    engine, compiled = (Engine.load(plain.model_copy(update={"compile": value})) for value in (False, True))
    framed = [engine.prepare(person) for person in people]
    for part in (framed[:3], framed[3:]):  # a full batch, and one that is filled up
        for one, other in zip(engine.reply(part), compiled.reply(part), strict=True):
            assert other.text == one.text
            assert other.confidence == pytest.approx(one.confidence, abs=1e-4)


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("decoding", ["slots", "free"])
def test_the_code_that_is_compiled_writes_the_same(made, people, name, decoding):
    torch.compiler.reset()
    with torch.compiler.set_stance("force_eager"):  # fixed shapes, but no compiler, which takes a minute
        assert_compiled_writes_the_same(made(name), people, decoding)


@pytest.mark.soak  # forty seconds of the compiler each; `make test` compiles one model in test_decoding.py
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("decoding", ["slots", "free"])
def test_a_compiled_family_writes_the_same(made, people, name, decoding):
    torch.compiler.reset()
    assert_compiled_writes_the_same(made(name), people, decoding)


# Prompts


@pytest.mark.parametrize("name", [name for name, sort in SORTS.items() if sort.chat and not sort.in_tokenizer])
@pytest.mark.parametrize("older", [False, True])
def test_the_prompt_is_what_the_chat_template_says(made, name, older):
    folder = made(name, older=older)
    expected = AutoProcessor.from_pretrained(folder).apply_chat_template(conversation(), add_generation_prompt=True)
    assert read_chat_form(folder).prompt(get_template("scgi")) == expected


def test_the_template_of_a_tokenizer_takes_text(made):
    folder = made("llava_next_llama3")
    said = [{"role": "user", "content": f"<image>\n{get_template('scgi').instruction}"}]
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    expected = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert read_chat_form(folder).prompt(get_template("scgi")) == expected


@pytest.mark.parametrize("template", ["scgi", "port45", "free", "closed"])
def test_the_chat_template_of_llava_1_5_gives_the_prompt_of_the_template(made, template):
    found = get_template(template)
    for folder in (made("llava_vicuna"), made("llava_mistral")):  # with and without a chat template
        form = read_chat_form(folder)
        assert form.prompt(found) == found.prompt()
        assert form.ingredients(found) == {}
    system = found.model_copy(update={"system": "Be brief."})
    assert read_chat_form(made("llava_vicuna")).prompt(system) == system.prompt()


def test_other_prompts_and_tiles_are_ingredients(made, tmp_path):
    memo = DigestMemo(tmp_path / "memo.sqlite")
    found = {name: identify(config(made(name)), memo).ingredients for name in SORTS}
    assert not {"prompt", "tiles", "model_type"} & found["llava_vicuna"].keys()
    assert found["llava_qwen2"].keys() - found["llava_vicuna"].keys() == {"prompt"}
    for name in TILED:
        assert found[name].keys() - found["llava_vicuna"].keys() == {"prompt", "tiles", "model_type"}
    other = identify(config(made("llava_next_mistral"), template="free"), memo).ingredients
    assert other["prompt"] != found["llava_next_mistral"]["prompt"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "needs its chat template"),
        ("{{ messages[0]['content'][1]['text'] }}", "it must write <image> once"),
        ("<image>{% for c in messages[0]['content'] %}<image>{% endfor %}", "it must write <image> once"),
        ("{{ raise_exception('only for text') }}", "TemplateError: only for text"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ strftime_now('%d %b %Y') }} <image>", "'strftime_now' is undefined"),
        ("{{ messages.__class__.__mro__ }} <image>", "SecurityError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{{ 'x' | dictsort }}", "AttributeError"),
        ("{{ 'x' | center(10 ** 18) }}", "MemoryError"),
        ("{{ lipsum(1) }}", "'lipsum' is undefined"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ messages | map('first') }}<image>{{ messages[0]['content'][1]['text'] }}", "nothing but text"),
    ],
)
def test_an_unusable_chat_template_is_refused_with_the_remedy(made, tmp_path, source, problem):
    folder = shutil.copytree(made("llava_next_mistral"), tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    if source is not None:
        (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(ConfigError) as caught:
        Engine.load(config(folder))
    assert problem in str(caught.value)
    assert "copy chat_template.jinja (or chat_template.json) from the model's repository" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}", "it does not end within 1 s"),
        ("{{ 9 ** (9 ** 9) }}", "it does not end within 1 s"),
        ("{{ '9' * 9 ** 12 }}", "MemoryError"),
        ("{{ '9' * 9 ** 7 }}", "it writes more than 1,000,000 characters"),
    ],
)
def test_a_chat_template_has_limits(made, monkeypatch, source, problem):
    monkeypatch.setattr(
        "captioning.chat_render.bounded", lambda *args, seconds: bounded(*args, seconds=min(seconds, 1))
    )
    form = read_chat_form(made("llava_next_mistral")).model_copy(update={"chat_template": source})
    with pytest.raises(ConfigError, match=f"the chat template of the model cannot be used .*{problem}.*: copy chat_t"):
        form.prompt(get_template("scgi"))


def test_a_chat_template_that_is_not_text_is_named(made, tmp_path):
    folder = shutil.copytree(made("llava_next_mistral"), tmp_path / "llava")
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(WeightsError, match=r"chat_template\.jinja is not UTF-8 text .*download or copy it again"):
        read_chat_form(folder)


def test_a_system_sentence_that_the_chat_template_drops_is_an_error(made):
    form = read_chat_form(made("llava_next_mistral"))
    deaf = form.model_copy(update={"chat_template": "[INST] <image>\n{{ messages[-1]['content'][1]['text'] }} [/INST]"})
    assert deaf.prompt(get_template("scgi")).startswith("[INST] <image>")
    with pytest.raises(ConfigError, match=r"set caption\.template to a template without one"):
        deaf.prompt(get_template("scgi").model_copy(update={"system": "Be brief."}))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_chat_template_may_use_special_tokens(made, tmp_path, name):
    folder = shutil.copytree(made("llava_qwen2"), tmp_path / "llava")
    (folder / "chat_template.jinja").write_text("{{ pad_token }}" + CHAT_ML)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    if name != path.name:
        (folder / name).write_text(json.dumps({"pad_token": {"content": content.pop("pad_token")}}))
        path.write_text(json.dumps(content))
    form = load_llava(config(folder)).form
    expected = AutoProcessor.from_pretrained(folder).apply_chat_template(conversation(), add_generation_prompt=True)
    assert form.prompt(get_template("scgi")) == expected
    assert expected.startswith("<|endoftext|><|im_start|>")
    tokenizer = SimpleNamespace(special_tokens_map={"pad_token": "<pad>"})
    with pytest.raises(WeightsError, match=r"uses pad_token, which tokenizer_config\.json does not give"):
        checked_form(SimpleNamespace(tokenizer=tokenizer), folder)


# Decoding


@pytest.mark.parametrize("name", SORTS)
@pytest.mark.parametrize("older", [False, True])
def test_free_text_is_what_transformers_generates_one_at_a_time(made, people, name, older):
    folder = made(name, older=older)
    engine = Engine.load(config(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    replies = engine.reply([engine.prepare(person) for person in people])
    for person, reply in zip(people, replies, strict=True):
        inputs = engine.inputs([engine.prepare(person)])
        ids = model.generate(
            engine.prompt_1L, **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=8
        )
        text = ids[0, engine.prompt_1L.shape[1] :]
        assert reply.text == engine.llava.processor.tokenizer.decode(text, skip_special_tokens=True)


@pytest.mark.parametrize("name", SORTS)
def test_slots_are_plain_constrained_greedy_decoding(made, people, tmp_path, name):
    engine = Engine.load(config(made(name), decoding="slots", template=str(small_template(tmp_path))))
    assert_plain_constrained_greedy(engine, people)


def test_a_caption_after_a_line_break_begins_without_a_space(made, people):
    for name, start in (("llava_onevision", "A"), ("llava_next_llama3", "A")):
        engine = Engine.load(config(made(name), decoding="slots"))
        assert engine.reply([engine.prepare(people[0])])[0].text.startswith(start)


# A model from the hub

HUB, COMMIT = "someone/mini-llava-next", "c" * 40


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """A hub cache with a LLaVA-NeXT; the hub itself cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--someone--mini-llava-next"
    shutil.copytree(made("llava_next_mistral"), model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return model


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_captions_of_a_hub_model_are_found_after_its_weights_are_deleted(hub, tmp_path, revision):
    store, root = ArtifactStore(tmp_path / "home"), draw(tmp_path / "people", 3)
    settings = config(HUB, revision=revision, batch_size=4)
    first = caption(store, images=index(store, root), images_root=root, config=settings)
    assert set(captions_of(first.made)["model_revision"]) == {COMMIT}
    shutil.rmtree(hub)
    again = caption(store, images=index(store, root), images_root=root, config=settings)
    assert again.made.cached
    assert again.made.ref.fingerprint == first.made.ref.fingerprint
