"""Slot-filling decoding: greedy, held to the template's grammar, with far fewer passes through the model than tokens.

Whatever needs no choice is fed in one chunk onto the key-value cache, for the whole batch at once. Where most options
go one way (" and" rather than "."), that way is fed along as a guess and checked against the model's own choice in the
same pass; a wrong guess is masked out of the cache. So only real choices, such as a colour, cost a pass. The tokens are
those of plain greedy decoding in which every token that leads to no legal caption is forbidden.

Shape legend: B batch, L columns of the cache, C tokens of a chunk, V vocabulary.
"""

# ruff: noqa: N803, N806 - shape suffixes are upper case

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from captioning.slot_grammar import Grammar, Node, State


@dataclass(kw_only=True)
class Filling:
    """One caption being written.

    tokens: decided so far, the end token included once `done`. chunk: what is fed next; its first `sure` tokens are
    decided, the rest guessed. confidence: slot -> sum of the log-probabilities of the choices that narrowed it.
    """

    state: State
    node: Node
    tokens: list[int] = field(default_factory=list)
    chunk: list[int] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def take(self, token: int, log_probability: float, grammar: Grammar) -> None:
        """Go on with `token`, chosen with `log_probability` among the legal ones."""
        before, self.node = self.node, self.node.children[token]
        self.tokens.append(token)
        for slot, values in self.node.possible.items():
            if values != before.possible[slot]:
                self.confidence[slot] = self.confidence.get(slot, 0.0) + log_probability
        option = self.node.option
        if option is None:
            return
        if option.after is None:
            self.done = True
            return
        self.state = option.after
        self.node = grammar.decision(option.after)

    def plan(self, grammar: Grammar) -> None:
        """Put the last token and, behind it, the way most options go into `chunk`."""
        self.chunk = self.tokens[-1:]
        node = self.node
        while node.guess is not None:
            token = node.guess
            node = node.children[token]
            option = node.option
            if option is not None:
                if option.after is None:
                    return  # the end is not fed: nothing comes after it
                node = grammar.decision(option.after)
            self.chunk.append(token)

    def read(self, logits_CV: np.ndarray, grammar: Grammar) -> int:
        """Choose tokens as long as the chunk's logits reach, and return how many of the chunk's tokens were right."""
        used = 0
        while not self.done:
            token, log_probability = choose(self.node, logits_CV[used])
            self.take(token, log_probability, grammar)
            used += 1
            if used >= len(self.chunk) or self.chunk[used] != token:
                break
        return used


def choose(node: Node, logits_V: np.ndarray) -> tuple[int, float]:
    """Return the likeliest legal token (of equal ones the smallest id) and its log-probability among the legal ones."""
    legal = sorted(node.children)
    if len(legal) == 1:
        return legal[0], 0.0
    values = logits_V[legal].astype(np.float64)
    best = int(values.argmax())
    shifted = values - values[best]
    return legal[best], float(-np.log(np.exp(shifted).sum()))


@torch.inference_mode()
def fill_slots(model: Any, prompt_BL: torch.Tensor, pixels_B3HW: torch.Tensor, grammar: Grammar) -> list[Filling]:
    """Write one caption for each image of a batch, all in step."""
    batch = len(prompt_BL)
    device = prompt_BL.device
    out = model.model(
        input_ids=prompt_BL, pixel_values=pixels_B3HW, attention_mask=torch.ones_like(prompt_BL), use_cache=True
    )
    cache = out.past_key_values
    start = State()
    rows = [Filling(state=start, node=grammar.decision(start)) for _ in range(batch)]
    first_BV = _logits(model, out.last_hidden_state[:, -1])
    for row, logits_V in zip(rows, first_BV, strict=True):
        row.chunk = [int(prompt_BL[0, -1])]  # already in the cache; its logits decide the first token
        row.read(logits_V[None], grammar)
    mask_BL = torch.ones_like(prompt_BL)
    lengths = np.full(batch, prompt_BL.shape[1])
    while not all(row.done for row in rows):
        chunk_BC, fed_BC = _chunks(rows, grammar)
        mask_BL = torch.cat([mask_BL, torch.from_numpy(fed_BC).to(device)], dim=1)
        places_BC = lengths[:, None] + np.arange(chunk_BC.shape[1])
        hidden_BCD = model.model.language_model(
            input_ids=torch.from_numpy(chunk_BC).to(device),
            attention_mask=mask_BL,
            position_ids=torch.from_numpy(places_BC).to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits_BCV = _logits(model, hidden_BCD)
        kept = np.array([0 if row.done else row.read(logits_BCV[i], grammar) for i, row in enumerate(rows)])
        # Columns behind the last right token held wrong guesses, or nothing: nobody may look at them again.
        right_BC = np.arange(chunk_BC.shape[1]) < kept[:, None]
        mask_BL[:, -chunk_BC.shape[1] :] = torch.from_numpy(right_BC.astype(np.int64)).to(device)
        lengths = lengths + kept
    return rows


def _logits(model: Any, hidden: torch.Tensor) -> np.ndarray:
    return model.lm_head(hidden).float().cpu().numpy()


def _chunks(rows: list[Filling], grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunks [B, C] of all rows, padded on the right, and which entries are fed (1) or padding (0)."""
    for row in rows:
        if row.done:
            row.chunk = []
        else:
            row.plan(grammar)
    width = max(len(row.chunk) for row in rows)
    chunk_BC = np.zeros((len(rows), width), np.int64)
    fed_BC = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        chunk_BC[i, : len(row.chunk)] = row.chunk
        fed_BC[i, : len(row.chunk)] = 1
    return chunk_BC, fed_BC
