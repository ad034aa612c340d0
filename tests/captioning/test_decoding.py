"""Slot filling writes what plain constrained greedy decoding writes, token for token."""

from __future__ import annotations

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
from data.slots import SLOTS
from tests.helpers.constrained_greedy import assert_plain_constrained_greedy, small_template
from tests.helpers.mini_llava import save_mini_llava


@pytest.fixture(scope="module")
def mini(module_folder):
    return save_mini_llava(module_folder("mini") / "llava", seed=4)


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (64, 32, 3)).astype(np.uint8)) for _ in range(6)]


def engine_of(mini, template: str) -> Engine:
    return Engine.load(
        CaptionConfig(model=str(mini), dtype="float32", device="cpu", decoding="slots", template=template)
    )


def test_tokens_and_confidence_are_those_of_plain_constrained_greedy_decoding(mini, people, tmp_path):
    engine = engine_of(mini, str(small_template(tmp_path)))
    assert len({*assert_plain_constrained_greedy(engine, people)}) > 1


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
@pytest.mark.parametrize("decoding", ["slots", pytest.param("free", marks=pytest.mark.soak)])
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
