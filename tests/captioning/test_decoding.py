"""Slot filling writes what plain constrained greedy decoding writes, token for token."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch._inductor import freezing

from captioning.attributes.parse import parse_caption
from captioning.config import CaptionConfig
from captioning.engines.llava import Engine
from captioning.engines.slots.grammar import Grammar, State
from captioning.prompts.templates import compose, get_template
from data.slots import NONE, SLOTS, VOCABULARY
from tests.helpers.mini_llava import save_mini_llava

SMALL = """
id = "small"
instruction = "Who is it?"
[[pattern]]
introduces = true
clauses = [{phrase = "shoes", first = " is wearing ", later = " and "}]
[[pattern]]
clauses = [
  {phrase = "carrying", first = " is carrying ", later = " and carrying "},
  {phrase = "hair", first = " has ", later = " and "},
]
"""


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return save_mini_llava(tmp_path_factory.mktemp("mini") / "llava", seed=4)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8)) for _ in range(6)]


def engine_of(mini, template: str) -> Engine:
    return Engine.load(
        CaptionConfig(model=str(mini), dtype="float32", device="cpu", decoding="slots", template=template)
    )


def legal_captions(engine: Engine) -> dict[tuple[int, ...], dict[str, str | None]]:
    """Every caption of the small template, written by `compose`, as tokens, with its slots."""
    tokenizer = engine.llava.processor.tokenizer
    end = engine.llava.model.generation_config.eos_token_id
    slots = ("gender", "age", "shoes", "carrying", "hair")
    options = [[*(v for v in VOCABULARY[slot] if v != NONE), None] for slot in slots]
    legal = {}
    for chosen in itertools.product(*options):
        values = dict(zip(slots, chosen, strict=True))
        text = compose(values, engine.config.prompt_template.pattern)
        legal[(*tokenizer(" " + text, add_special_tokens=False).input_ids, end)] = values
    return legal


def plain_constrained_greedy(engine, person, legal) -> tuple[tuple[int, ...], dict[str, float]]:
    """One image, one token per step, no cache: the best token that begins or continues a legal caption.

    Also returns, for each slot, the log-probability of the choices that narrowed what it can still be.
    """
    pixels = engine.pixels([engine.prepare(person)])
    done: tuple[int, ...] = ()
    confidence: dict[str, float] = {}
    while len(legal) > 1 or done not in legal:
        ids = torch.cat([engine.prompt_1L, torch.tensor([done], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = engine.llava.model(input_ids=ids, pixel_values=pixels).logits[0, -1].double()
        allowed = sorted({row[len(done)] for row in legal})
        chances = logits[allowed].log_softmax(dim=0)
        best = int(chances.argmax())
        done = (*done, allowed[best])
        left = {row: values for row, values in legal.items() if row[: len(done)] == done}
        for slot in next(iter(legal.values())):
            if {values[slot] for values in left.values()} != {values[slot] for values in legal.values()}:
                confidence[slot] = confidence.get(slot, 0.0) + float(chances[best])
        legal = left
    return done, confidence


def test_tokens_and_confidence_are_those_of_plain_constrained_greedy_decoding(mini, people, tmp_path):
    template = tmp_path / "small.toml"
    template.write_text(SMALL)
    engine = engine_of(mini, str(template))
    legal = legal_captions(engine)
    replies = engine.reply([engine.prepare(person) for person in people])
    for person, reply in zip(people, replies, strict=True):
        tokens, confidence = plain_constrained_greedy(engine, person, legal)
        assert reply.text == engine.llava.processor.tokenizer.decode(tokens[:-1])
        assert reply.n_tokens == len(tokens) - 1
        assert reply.confidence == pytest.approx(confidence, abs=1e-4)
    assert len({reply.text for reply in replies}) > 1


def walk(grammar: Grammar, rng: np.random.Generator) -> tuple[list[int], dict[str, str | None]]:
    """Follow random options; return the tokens and the slots that they decide."""
    state, tokens, values = State(), [], {}
    while state is not None:
        node = grammar.decision(state)
        while node.option is None:
            token = int(rng.choice(sorted(node.children)))
            tokens.append(token)
            node = node.children[token]
        values |= node.option.values
        state = node.option.after
    return tokens, values


@pytest.mark.parametrize("name", ["scgi", "port45", "closed"])
def test_every_legal_text_equals_that_of_compose(mini, name):
    engine = engine_of(mini, name)
    rng = np.random.default_rng(0)
    pattern = get_template(name).pattern
    for _ in range(300):
        tokens, values = walk(engine._grammar, rng)
        text = engine.llava.processor.tokenizer.decode(tokens[:-1]).strip()
        assert set(values) == set(SLOTS)
        assert text == compose(values, pattern)
        assert {slot: value for slot, value in parse_caption(text).items() if value} == {
            slot: value for slot, value in values.items() if value
        }


def test_captions_do_not_depend_on_their_batch_and_have_confidences(mini, people):
    engine = engine_of(mini, "scgi")
    framed = [engine.prepare(person) for person in people]
    together = engine.reply(framed)
    for image, reply in zip(framed, together, strict=True):
        alone = engine.reply([image])[0]
        assert alone.text == reply.text
        assert set(reply.confidence) == set(SLOTS)
        assert all(value <= 0 for value in reply.confidence.values())
        assert alone.confidence == pytest.approx(reply.confidence, abs=1e-4)
        assert not reply.truncated


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("decoding", ["slots", "free"])
def test_a_compiled_model_writes_the_same_with_its_weights_as_constants(mini, people, decoding, monkeypatch):
    freeze, kept = freezing.freeze, []

    def watched(dynamo, graph, inputs):
        frozen, left = freeze(dynamo, graph, inputs)
        kept.append((len(left), len(inputs)))
        return frozen, left

    monkeypatch.setattr(freezing, "freeze", watched)
    torch.compiler.reset()
    settings = {"model": str(mini), "dtype": "float32", "device": "cpu", "decoding": decoding, "template": "scgi"}
    plain = CaptionConfig.model_validate({**settings, "batch_size": 4})
    engine, compiled = (Engine.load(plain.model_copy(update={"compile": value})) for value in (False, True))
    framed = [engine.prepare(person) for person in people]
    expected = [*engine.reply(framed[:4]), *engine.reply(framed[4:])]
    replies = [*compiled.reply(framed[:4]), *compiled.reply(framed[4:])]
    assert [reply.text for reply in replies] == [reply.text for reply in expected]
    for one, other in zip(expected, replies, strict=True):
        assert other.confidence == pytest.approx(one.confidence, abs=1e-4)
    # Prompt and chunk, vision tower and language model: the weights are constants, so none is passed.
    assert len(kept) >= 3
    assert all(left < given / 2 for left, given in kept)
    made = len(kept)
    assert [reply.text for reply in compiled.reply(framed[1:2])] == [expected[1].text]
    assert len(kept) == made, "a batch that is not full was compiled anew"
