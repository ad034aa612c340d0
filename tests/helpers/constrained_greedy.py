"""Plain constrained greedy decoding, the reference that slot filling must equal: one token per step, no cache."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captioning.engines.llava import Engine
from captioning.prompts.templates import compose
from data.slots import NONE, VOCABULARY

_SMALL = """
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
_SLOTS = ("gender", "age", "shoes", "carrying", "hair")

Legal = dict[tuple[int, ...], dict[str, Any]]
"""Tokens of a caption -> its slots."""


def small_template(folder: Path) -> Path:
    """Write a template with so few captions that all of them can be listed, and return its path."""
    path = folder / "small.toml"
    path.write_text(_SMALL)
    return path


def legal_captions(engine: Engine) -> Legal:
    """Return every caption of the small template, written by `compose`, as tokens, with its slots."""
    tokenizer = engine.llava.processor.tokenizer
    start = "\n" if engine.prompt.endswith("\n") else " "
    before = tokenizer(start, add_special_tokens=False).input_ids if start == "\n" else []
    legal: Legal = {}
    for chosen in itertools.product(*([*(v for v in VOCABULARY[slot] if v != NONE), None] for slot in _SLOTS)):
        values = dict(zip(_SLOTS, chosen, strict=True))
        text = compose(values, engine.config.prompt_template.pattern)
        tokens = tokenizer(start + text, add_special_tokens=False).input_ids[len(before) :]
        legal[(*tokens, tokenizer.eos_token_id)] = values
    return legal


def plain_constrained_greedy(
    engine: Engine, person: Image.Image, legal: Legal
) -> tuple[tuple[int, ...], dict[str, float]]:
    """Return the caption of one image: at each step the best token that begins or continues a legal caption.

    Also returns, for each slot, the log-probability of the choices that narrowed what it can still be.
    """
    inputs = engine.inputs([engine.prepare(person)])
    done: tuple[int, ...] = ()
    confidence: dict[str, float] = {}
    while len(legal) > 1 or done not in legal:
        ids = torch.cat([engine.prompt_1L, torch.tensor([done], dtype=torch.long)], dim=1)
        with torch.inference_mode():
            logits = engine.llava.model(input_ids=ids, **inputs).logits[0, -1].double()
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


def assert_plain_constrained_greedy(engine: Engine, people: Sequence[Image.Image]) -> list[str]:
    """Check the captions of `people`, tokens and confidence; return their texts."""
    legal = legal_captions(engine)
    replies = engine.reply([engine.prepare(person) for person in people])
    for person, reply in zip(people, replies, strict=True):
        tokens, confidence = plain_constrained_greedy(engine, person, legal)
        assert reply.text == engine.llava.processor.tokenizer.decode(tokens[:-1])
        assert reply.n_tokens == len(tokens) - 1
        assert reply.confidence == pytest.approx(confidence, abs=1e-4)
    return [reply.text for reply in replies]
