"""caption.image_tokens=body: what it leaves out, and that the rest is computed as by transformers' own forward pass."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.captioner import identify
from captioning.config import CaptionConfig
from captioning.engines.image_tokens import PatchGrid, kept_tokens
from captioning.engines.llava import Engine
from captioning.framing import body_of, frame
from captioning.prompts.templates import compose
from data.artifacts.digests import DigestMemo
from data.config import build_config
from data.errors import ConfigError
from data.slots import NONE, VOCABULARY
from data.synthetic.world import training_sample
from tests.helpers.mini_llava import save_mini_llava

SMALL = """
id = "small"
instruction = "Who is it?"
[[pattern]]
introduces = true
clauses = [{phrase = "hair", first = " has ", later = " and "}]
"""
# Width and height: patches kept of 4 x 4 are 8, 8, 4, 16, 12, 4, 8, 16.
SHAPES = ((32, 64), (50, 100), (16, 64), (40, 40), (40, 64), (60, 13), (64, 32), (64, 60))
LIMIT = 8


@pytest.fixture(scope="module")
def mini(module_folder):
    return save_mini_llava(module_folder("mini") / "llava", seed=4)


@pytest.fixture(scope="module")
def small(module_folder):
    path = module_folder("template") / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3)).astype(np.uint8)) for w, h in SHAPES]


def engine_of(mini, **settings) -> Engine:
    fixed = {"model": str(mini), "dtype": "float32", "device": "cpu", "image_tokens": "body"}
    if settings.get("decoding", "free") == "free":
        fixed["max_new_tokens"] = LIMIT
    return Engine.load(CaptionConfig.model_validate({**fixed, **settings}))


def replies(engine: Engine, people) -> list:
    return engine.reply([engine.prepare(person) for person in people])


# Which tokens


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (336, 14), (128, 16), (50, 14)])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (3, 500), (33, 71), (100, 100), (61, 128), (1, 1)])
def test_kept_patches_are_those_with_a_pixel_of_the_crop(side, patch, size):
    white, black = (
        frame(Image.new("RGB", size, color), "pad", (side, side), (0.5, 0.5, 0.5)) for color in ("white", "black")
    )
    shows = np.any(np.asarray(white) != np.asarray(black), axis=-1)
    box = body_of(white)
    assert shows.sum() == (box.right - box.left) * (box.bottom - box.top)
    patches = side // patch
    expected = [
        shows[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].any()
        for i in range(patches)
        for j in range(patches)
    ]
    for before, dropped in ((1, 0), (1, 1), (0, 0), (0, 1)):  # with a class token, without it, without any
        grid = PatchGrid(side=side, patch=patch, before=before, dropped=dropped)
        assert kept_tokens([white], grid)[0].tolist() == [*[True] * before, *expected][dropped:]


@pytest.mark.parametrize("framing", ["stretch", "center_crop"])
def test_other_framings_have_no_padding(framing):
    framed = frame(Image.new("RGB", (64, 128)), framing, (128, 128), (0.5, 0.5, 0.5))
    assert body_of(framed) == (0, 0, 128, 128)


def test_the_language_model_reads_half_of_the_image_tokens_of_a_1_to_2_crop(mini, people, monkeypatch):
    for tokens, share in (("all", 1.0), ("body", 0.5)):
        engine = engine_of(mini, image_tokens=tokens, decoding="free")
        widths, forward = [], engine.llava.model.model.language_model.forward

        def watched(*args, forward=forward, widths=widths, **kwargs):
            if kwargs.get("inputs_embeds") is not None:
                widths.append(kwargs["inputs_embeds"].shape[1])
            return forward(*args, **kwargs)

        monkeypatch.setattr(engine.llava.model.model.language_model, "forward", watched)
        replies(engine, people[:2])
        image, text = engine.llava.family.image_tokens, engine.prompt_1L.shape[1] - engine.llava.family.image_tokens
        assert widths[0] == text + share * image


# The same as by hand


def shown(engine: Engine, person: Image.Image) -> list[bool]:
    """Which patches show the crop, from the shape of the crop alone."""
    side, patch = engine.llava.family.side, engine.llava.family.patch
    scale = side / max(person.size)
    half = [max(1, round(length * scale)) / 2 for length in person.size]
    starts = range(0, side, patch)
    inside = [[start < side // 2 + h and start + patch > side // 2 - h for start in starts] for h in half]
    return [inside[0][x] and inside[1][y] for y in range(len(starts)) for x in range(len(starts))]


class ByHand:
    """Next-token logits of one image without a cache, by transformers' forward on the kept tokens."""

    def __init__(self, engine: Engine, person: Image.Image) -> None:
        self.model = engine.llava.model
        seen = torch.tensor(shown(engine, person))
        features = self.features(engine, person, seen)
        ids = engine.prompt_1L[0]
        self.length = len(ids)
        embeds = self.model.get_input_embeddings()(ids).clone()
        is_image = ids == self.model.config.image_token_id
        kept = torch.ones(len(ids), dtype=torch.bool)
        kept[is_image] = seen
        embeds[is_image & kept] = features
        self.embeds, self.places = embeds[kept], kept.nonzero()[:, 0]

    @torch.inference_mode()
    def features(self, engine: Engine, person: Image.Image, seen: torch.Tensor) -> torch.Tensor:
        """The features of the patches that are seen; with body_only, the layers of the tower get only these."""
        pixels = engine.pixels([engine.prepare(person)])
        if engine.config.image_tokens == "body":
            return self.model.get_image_features(pixel_values=pixels).pooler_output[0][seen]
        with_class = torch.cat([torch.tensor([True]), seen])
        norm = self.model.model.vision_tower.pre_layrnorm
        hook = norm.register_forward_pre_hook(lambda _, given: (given[0][:, with_class],))
        try:
            return self.model.get_image_features(pixel_values=pixels).pooler_output[0]
        finally:
            hook.remove()

    @torch.inference_mode()
    def logits(self, done: tuple[int, ...]) -> torch.Tensor:
        more = self.model.get_input_embeddings()(torch.tensor(done, dtype=torch.long))
        embeds = torch.cat([self.embeds, more])[None]
        places = torch.cat([self.places, self.length + torch.arange(len(done))])[None]
        seen = torch.ones(embeds.shape[:2], dtype=torch.long)
        out = self.model(inputs_embeds=embeds, position_ids=places, attention_mask=seen, use_cache=False)
        return out.logits[0, -1].double()


SLOTS = ("gender", "age", "hair")
Legal = dict[tuple[int, ...], dict[str, str | None]]


def legal_captions(engine: Engine) -> Legal:
    tokenizer = engine.llava.processor.tokenizer
    end = engine.llava.model.generation_config.eos_token_id
    legal = {}
    for chosen in itertools.product(*([*(v for v in VOCABULARY[slot] if v != NONE), None] for slot in SLOTS)):
        values = dict(zip(SLOTS, chosen, strict=True))
        text = compose(values, engine.config.prompt_template.pattern)
        legal[(*tokenizer(" " + text, add_special_tokens=False).input_ids, end)] = values
    return legal


def constrained_greedy(hand: ByHand, legal: Legal) -> tuple[tuple[int, ...], dict[str, float]]:
    """Return the tokens, and per slot the log-probability of the choices that narrowed it."""
    done: tuple[int, ...] = ()
    confidence: dict[str, float] = {}
    while done not in legal:
        allowed = sorted({row[len(done)] for row in legal})
        chances = hand.logits(done)[allowed].log_softmax(dim=0)
        best = int(chances.argmax())
        done = (*done, allowed[best])
        left = {row: values for row, values in legal.items() if row[: len(done)] == done}
        for slot in SLOTS:
            if {values[slot] for values in left.values()} != {values[slot] for values in legal.values()}:
                confidence[slot] = confidence.get(slot, 0.0) + float(chances[best])
        legal = left
    return done, confidence


KINDS = pytest.mark.parametrize(
    ("tokens", "quantization"), [("body", "none"), ("body", "4bit"), ("body_only", "none"), ("body_only", "4bit")]
)


@KINDS
def test_slots_are_those_of_transformers_forward_on_the_kept_tokens(mini, small, people, tokens, quantization):
    engine = engine_of(mini, decoding="slots", template=small, image_tokens=tokens, quantization=quantization)
    legal = legal_captions(engine)
    found = replies(engine, people)
    for person, reply in zip(people, found, strict=True):
        tokens, confidence = constrained_greedy(ByHand(engine, person), legal)
        assert reply.text == engine.llava.processor.tokenizer.decode(tokens[:-1])
        assert reply.confidence == pytest.approx(confidence, abs=1e-4)
    assert len({reply.text for reply in found}) > 1


@KINDS
def test_free_text_is_that_of_transformers_forward_on_the_kept_tokens(mini, people, tokens, quantization):
    engine = engine_of(mini, image_tokens=tokens, quantization=quantization)
    end = engine.llava.model.generation_config.eos_token_id
    found = replies(engine, people)
    for person, reply in zip(people, found, strict=True):
        hand, done = ByHand(engine, person), ()
        while len(done) < LIMIT and (not done or done[-1] != end):
            done = (*done, int(hand.logits(done).argmax()))
        assert reply.text == engine.llava.processor.tokenizer.decode(done, skip_special_tokens=True)
    assert len({reply.text for reply in found}) > 1


def test_free_text_of_the_embedded_model_is_that_of_transformers_forward(people):
    engine = Engine.load(CaptionConfig(image_tokens="body", device="cpu", max_new_tokens=20))
    person = Image.fromarray(training_sample(3, 0).image)
    hand, done = ByHand(engine, person), ()
    for _ in range(20):
        done = (*done, int(hand.logits(done).argmax()))
    assert replies(engine, [people[5], person])[1].text == engine.llava.processor.tokenizer.decode(done)


# Batches


DECODINGS = pytest.mark.parametrize("decoding", ["slots", "free"])
TOKENS = pytest.mark.parametrize("tokens", ["body", "body_only"])


@DECODINGS
@TOKENS
@pytest.mark.parametrize("embedded", [False, True], ids=["mini", "embedded"])
def test_captions_do_not_depend_on_the_shapes_in_their_batch(mini, people, embedded, tokens, decoding):
    if embedded:  # its vision tower is not a CLIP
        engine = Engine.load(CaptionConfig(image_tokens=tokens, decoding=decoding, device="cpu"))
    else:
        engine = engine_of(mini, image_tokens=tokens, decoding=decoding)
    together = replies(engine, people)
    for person, reply in zip(people, together, strict=True):
        alone = replies(engine, [person])[0]
        assert alone.text == reply.text
        assert alone.confidence == pytest.approx(reply.confidence, abs=1e-4)
    assert [reply.text for reply in replies(engine, people[::-1])] == [reply.text for reply in together[::-1]]


def test_sampled_replies_do_not_depend_on_the_shapes_in_their_batch(mini, people):
    engine = engine_of(mini)
    framed = [engine.prepare(person) for person in people]
    seeds = list(range(len(people)))
    together = engine.reply(framed, seeds)
    assert [engine.reply([image], [seed])[0] for image, seed in zip(framed, seeds, strict=True)] == together


@DECODINGS
@TOKENS
@pytest.mark.parametrize("embedded", [False, True], ids=["mini", "embedded"])
def test_without_padding_nothing_changes(mini, people, embedded, tokens, decoding):
    square = [person.resize((128, 128)) for person in people]
    model = "tiny" if embedded else mini
    without, everything = (
        replies(engine_of(model, decoding=decoding, image_tokens=kind), square) for kind in (tokens, "all")
    )
    for one, other in zip(without, everything, strict=True):
        assert one.text == other.text
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_with_padding_each_setting_is_another(mini, people):
    kinds = ("all", "body", "body_only")
    found = [replies(engine_of(mini, decoding="slots", image_tokens=kind), people[:3]) for kind in kinds]
    for one, other in itertools.combinations(found, 2):
        for first, second in zip(one, other, strict=True):
            assert first.confidence != pytest.approx(second.confidence, abs=1e-3)


def assert_compiled_writes_the_same(mini, people, tokens, decoding):
    torch.compiler.reset()
    settings = {"image_tokens": tokens, "decoding": decoding, "batch_size": 4}
    plain, compiled = (engine_of(mini, compile=value, **settings) for value in (False, True))
    for part in (people[:4], people[4:]):
        for one, other in zip(replies(plain, part), replies(compiled, part), strict=True):
            assert other.text == one.text
            assert other.confidence == pytest.approx(one.confidence, abs=1e-4)


@DECODINGS
@TOKENS
def test_the_code_that_is_compiled_writes_the_same(mini, people, tokens, decoding):
    with torch.compiler.set_stance("force_eager"):  # fixed shapes, but no compiler, which takes long
        assert_compiled_writes_the_same(mini, people, tokens, decoding)


@pytest.mark.soak  # `make test` compiles one model in test_decoding.py
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("tokens", "decoding"), [("body_only", "slots"), ("body", "slots"), ("body", "free")])
def test_a_compiled_model_writes_the_same(mini, people, tokens, decoding):
    assert_compiled_writes_the_same(mini, people, tokens, decoding)


# Settings and identity


def test_it_is_part_of_the_fingerprint_only_where_it_is_not_all(tmp_path):
    memo = DigestMemo(tmp_path / "memo.sqlite")
    default, body = (identify(CaptionConfig(image_tokens=tokens), memo) for tokens in ("all", "body"))
    assert "image_tokens" not in default.ingredients
    assert body.ingredients == {**default.ingredients, "image_tokens": "body"}
    assert body.fingerprint != default.fingerprint
    assert "image_tokens" not in CaptionConfig().identity()
    assert CaptionConfig(image_tokens="body").identity()["image_tokens"] == "body"


def test_a_tower_that_only_takes_whole_squares_is_refused(mini):
    engine = engine_of(mini)
    engine.llava.model.config.vision_config.model_type = "siglip_vision_model"
    with pytest.raises(
        ConfigError, match=r"caption\.image_tokens=body_only needs .* siglip.*set caption\.image_tokens=body"
    ):
        Engine(engine.llava, engine.config.model_copy(update={"image_tokens": "body_only"}))


@pytest.mark.parametrize("tokens", ["body", "body_only"])
def test_a_model_with_tiles_is_refused_by_name(tmp_path, tokens):
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    with pytest.raises(ConfigError, match=rf"image_tokens={tokens} .*is a llava_next: set caption\.image_tokens=all"):
        identify(CaptionConfig(model=str(tmp_path), image_tokens=tokens), DigestMemo(tmp_path / "memo.sqlite"))


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"framing": "stretch"}, "set image_tokens=all or framing=pad"),
        ({"framing": "center_crop"}, "set image_tokens=all or framing=pad"),
        ({"engine": "openai", "model": "llava"}, "the server decides this; set image_tokens=all"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings, remedy):
    with pytest.raises(ConfigError, match=remedy):
        build_config(CaptionConfig, {"image_tokens": "body", **settings}, "caption")
